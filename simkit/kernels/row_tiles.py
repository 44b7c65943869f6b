"""How kernels that go row by row cut a matrix: whole rows, as many a program as keep its threads busy."""

from typing import NamedTuple

import torch
import triton

from simkit.kernels.arguments import FLOATS, check_tensor

MAX_COLUMNS = 32_768  # one row is held in registers: 64 f32 values a thread of 16 warps
TILE_ELEMENTS = 4096  # 8 KB in 16 bits: two loads of 16 bytes by each of 256 threads


class RowTiles(NamedTuple):
    """How a row kernel is compiled."""

    rows: int  # a program
    block: int  # columns held, a power of two
    num_warps: int


def row_tiles(columns: int) -> RowTiles:
    """Tiles for rows of `columns` values."""
    block: int = triton.next_power_of_2(max(columns, 1))
    rows = max(1, min(32, TILE_ELEMENTS // block))
    return RowTiles(rows, block, num_warps=max(1, min(16, rows * block // 512)))


class Rows(NamedTuple):
    """A tensor [tokens, columns] or [tokens, heads, columns] as rows: row r at r // heads and r % heads."""

    rows: int
    heads: int
    columns: int
    token_stride: int
    head_stride: int


def check_rows(name: str, tensor: torch.Tensor, device: torch.device) -> Rows:
    """The rows of a float tensor of two or three axes, last one contiguous; ValueError names what is off."""
    if tensor.ndim not in (2, 3):
        raise ValueError(f"{name}: its shape is {list(tensor.shape)}; [tokens, columns] or [tokens, heads, columns]")
    check_tensor(name, tensor, (None,) * tensor.ndim, FLOATS, device)
    heads = tensor.shape[1] if tensor.ndim == 3 else 1
    columns = tensor.shape[-1]
    if not 1 <= columns <= MAX_COLUMNS:
        raise ValueError(f"{name}: rows of {columns} values; 1 to {MAX_COLUMNS} are expected")
    return Rows(tensor.shape[0] * heads, heads, columns, tensor.stride(0), tensor.stride(1) if tensor.ndim == 3 else 0)


def check_same_form(name: str, tensor: torch.Tensor, like: torch.Tensor) -> Rows:
    """The rows of a tensor of the shape, dtype and device of another; ValueError names what is off."""
    check_tensor(name, tensor, tuple(like.shape), (like.dtype,), like.device)
    return check_rows(name, tensor, like.device)
