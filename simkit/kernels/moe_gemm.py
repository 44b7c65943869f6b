"""The matrix products of a mixture of experts: each token's row by its experts' matrices, and their weighted sum.

Math. For pair i = token * k + slot, with expert e = experts[token, slot]:

    grouped GEMM   out[i] = x[i // pairs_per_row] W[e]^T + b[e]     one row of x a token (k pairs), or one a pair
    combine        y[token] = sum_slot weights[token, slot] * z[token * k + slot]

Products of tiles are f32 on tensor cores, rounded once to store; the combine is f32 and rounded once.

Layout. x [tokens or pairs, n_in] with its last axis contiguous, W [experts, n_out, n_in] (a row an output, as
checkpoints and vLLM's fused_moe have it), b [experts, n_out], out [pairs, n_out]; f32, f16 or bf16, all the same. Rows
come in the order of `moe_routing.order_by_expert`, so that a tile of BLOCK_ROWS rows has one expert; fillers are read
as 0 and not stored. Tiles of one expert that need the same columns of W are neighbours in the grid and meet in L2.

Source: the structure of vLLM's `fused_moe_kernel`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_can_launch, check_tensor
from simkit.kernels.configurations import NAMES, configuration
from simkit.kernels.jit import jit
from simkit.kernels.moe_routing import ExpertOrder

BLOCK_COLUMNS = 1024  # of the combine


class GroupedGemmConfig(NamedTuple):
    """How a grouped GEMM is compiled."""

    block_rows: int
    block_out: int
    block_in: int
    num_warps: int
    num_stages: int


@jit
def grouped_gemm_kernel(
    x: tl.pointer_type,
    weights: tl.pointer_type,
    bias: tl.pointer_type,
    rows: tl.pointer_type,
    block_expert: tl.pointer_type,
    out: tl.pointer_type,
    pairs: int,
    n_out: int,
    n_in: int,
    x_stride: int,
    weights_stride_expert: int,
    weights_stride_out: int,
    bias_stride: int,
    out_stride: int,
    PAIRS_PER_ROW: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> None:
    """A tile of BLOCK_ROWS pairs of one expert by BLOCK_OUT outputs. Grid (blocks of rows, n_out / BLOCK_OUT)."""
    expert = tl.load(block_expert + tl.program_id(0)).to(tl.int64)
    if expert < 0:
        return
    pair = tl.load(rows + tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))  # [BLOCK_ROWS]
    pair_ok = pair < pairs
    output = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    output_ok = output < n_out
    inner = tl.arange(0, BLOCK_IN)
    x_at = x + (pair // PAIRS_PER_ROW).to(tl.int64)[:, None] * x_stride + inner[None, :]
    w_at = weights + expert * weights_stride_expert + output[None, :] * weights_stride_out + inner[:, None]
    acc = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
    for first in range(0, n_in, BLOCK_IN):
        inner_ok = first + inner < n_in
        a = tl.load(x_at + first, mask=pair_ok[:, None] & inner_ok[None, :], other=0.0)  # [BLOCK_ROWS, BLOCK_IN]
        b = tl.load(w_at + first, mask=inner_ok[:, None] & output_ok[None, :], other=0.0)  # [BLOCK_IN, BLOCK_OUT]
        acc += tl.dot(a, b, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + expert * bias_stride + output, mask=output_ok, other=0.0).to(tl.float32)[None, :]
    at = out + pair.to(tl.int64)[:, None] * out_stride + output[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=pair_ok[:, None] & output_ok[None, :])


@jit
def combine_kernel(
    z: tl.pointer_type,
    weights: tl.pointer_type,
    out: tl.pointer_type,
    columns: int,
    z_stride: int,
    out_stride: int,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK columns of one token. Grid (tokens, columns / BLOCK rounded up)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = column < columns
    total = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(K):
        weight = tl.load(weights + token * K + slot)
        total += weight * tl.load(z + (token * K + slot) * z_stride + column, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + token * out_stride + column, total.to(out.dtype.element_ty), mask=ok)


def grouped_gemm_config(pairs: int, experts: int, dtype: torch.dtype, device: torch.device) -> GroupedGemmConfig:
    """The table's tiles for as many rows as an expert has on average: few rows, and the time is reading the weights."""
    entry = configuration("grouped_gemm", device, dtype=NAMES[dtype], rows=triton.cdiv(pairs, max(1, experts)))
    tile = entry.constants
    return GroupedGemmConfig(tile["BLOCK_ROWS"], tile["BLOCK_OUT"], tile["BLOCK_IN"], entry.num_warps, entry.num_stages)


def grouped_gemm(
    x: torch.Tensor,
    weights: torch.Tensor,
    order: ExpertOrder,
    config: GroupedGemmConfig,
    pairs_per_row: int,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each pair's row by its expert's matrix, [pairs, n_out] of x's dtype.

    Args:
        x: [pairs / pairs_per_row, n_in], f32, f16 or bf16, last axis contiguous.
        weights: [experts, n_out, n_in] of x's dtype, last axis contiguous.
        order: of `order_by_expert` with the config's block_rows.
        config: see `grouped_gemm_config`.
        pairs_per_row: k where x has a row a token, 1 where it has a row a pair.
        bias: [experts, n_out] of x's dtype.
        out: where to write; made if None.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    if pairs_per_row < 1 or order.pairs % pairs_per_row:
        raise ValueError(f"pairs_per_row: is {pairs_per_row}; a divisor of the {order.pairs} pairs is expected")
    check_tensor("x", x, (order.pairs // pairs_per_row, None), FLOATS, x.device)
    check_tensor("weights", weights, (None, None, x.shape[1]), (x.dtype,), x.device)
    experts, n_out, n_in = weights.shape
    if bias is not None:
        check_tensor("bias", bias, (experts, n_out), (x.dtype,), x.device)
    check_tensor("order.rows", order.rows, (len(order.block_expert) * order.block_rows,), (torch.int32,), x.device)
    if config.block_rows != order.block_rows:
        raise ValueError(f"config: tiles of {config.block_rows} rows; the order's {order.block_rows} are expected")
    out = torch.empty((order.pairs, n_out), dtype=x.dtype, device=x.device) if out is None else out
    check_tensor("out", out, (order.pairs, n_out), (x.dtype,), x.device)
    check_can_launch("x", x, grouped_gemm_kernel)
    if not order.pairs or not n_out:
        return out
    grouped_gemm_kernel[(len(order.block_expert), triton.cdiv(n_out, config.block_out))](
        x,
        weights,
        x if bias is None else bias,
        order.rows,
        order.block_expert,
        out,
        order.pairs,
        n_out,
        n_in,
        x.stride(0),
        *weights.stride()[:2],
        0 if bias is None else bias.stride(0),
        out.stride(0),
        PAIRS_PER_ROW=pairs_per_row,
        BIAS=bias is not None,
        BLOCK_ROWS=config.block_rows,
        BLOCK_OUT=config.block_out,
        BLOCK_IN=config.block_in,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def combine(z: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The weighted sum of each token's k rows, [tokens, columns] of z's dtype.

    Args:
        z: [tokens * k, columns], f32, f16 or bf16, last axis contiguous.
        weights: f32[tokens, k], contiguous.
        out: where to write; made if None.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    check_tensor("weights", weights, (None, None), (torch.float32,), z.device)
    tokens, k = weights.shape
    if not weights.is_contiguous():
        raise ValueError(f"weights: its strides are {weights.stride()}; a contiguous tensor is expected")
    check_tensor("z", z, (tokens * k, None), FLOATS, z.device)
    out = torch.empty((tokens, z.shape[1]), dtype=z.dtype, device=z.device) if out is None else out
    check_tensor("out", out, (tokens, z.shape[1]), (z.dtype,), z.device)
    check_can_launch("z", z, combine_kernel)
    if out.numel():
        block = min(BLOCK_COLUMNS, triton.next_power_of_2(z.shape[1]))
        combine_kernel[(tokens, triton.cdiv(z.shape[1], block))](
            z, weights, out, z.shape[1], z.stride(0), out.stride(0), K=k, BLOCK=block, num_warps=4
        )
    return out


def grouped_gemm_reference(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    pairs_per_row: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same in float64, pair by pair, f64[pairs, n_out]; experts i32[tokens, k]."""
    rows = []
    for pair, expert in enumerate(experts.flatten().tolist()):
        row = weights[expert].double() @ x[pair // pairs_per_row].double()
        rows.append(row if bias is None else row + bias[expert].double())
    return torch.stack(rows) if rows else torch.zeros((0, weights.shape[1]), dtype=torch.float64)


def combine_reference(z: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The same in float64, f64[tokens, columns]."""
    tokens, k = weights.shape
    return (z.double().reshape(tokens, k, -1) * weights.double()[:, :, None]).sum(dim=1)
