"""LayerNorm of rows, with the residual added on the way.

Math. For each row x of n values, with a residual row r:

    h = x + r                     rounded to the type of x; h = x where there is no residual
    out = (h - mean(h)) / sqrt(mean((h - mean(h))^2) + eps) * weight + bias

The sum h replaces the residual, so that the next layer adds to it. Arithmetic is f32, the variance from the differences
(not from E[h^2] - E[h]^2, which cancels), rounded once to store.

Layout. x, residual and out [tokens, n] or [tokens, heads, n] of f32, f16 or bf16, any strides but on the last axis;
weight and bias [n] of any of the three. A program holds whole rows.

Source: Ba, Kiros and Hinton 2016; torch.nn.LayerNorm.
"""

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_can_launch, check_tensor
from simkit.kernels.jit import jit
from simkit.kernels.row_tiles import check_rows, check_same_form, row_tiles


@jit
def layer_norm_kernel(
    x: tl.pointer_type,
    residual: tl.pointer_type,
    weight: tl.pointer_type,
    bias: tl.pointer_type,
    out: tl.pointer_type,
    rows: int,
    heads: int,
    x_stride_token: int,
    x_stride_head: int,
    residual_stride_token: int,
    residual_stride_head: int,
    out_stride_token: int,
    out_stride_head: int,
    eps: float,
    COLUMNS: tl.constexpr,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """ROWS rows. Grid (rows / ROWS rounded up)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = row // heads, row % heads
    column = tl.arange(0, BLOCK)
    column_ok = column < COLUMNS
    ok = (row < rows)[:, None] & column_ok[None, :]
    at = token * x_stride_token + head * x_stride_head
    values = tl.load(x + at[:, None] + column[None, :], mask=ok, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
    if ADD:
        at = token * residual_stride_token + head * residual_stride_head
        sums = residual + at[:, None] + column[None, :]
        values += tl.load(sums, mask=ok, other=0.0).to(tl.float32)
        rounded = values.to(residual.dtype.element_ty)
        tl.store(sums, rounded, mask=ok)
        values = rounded.to(tl.float32)
    mean = tl.sum(values, 1) / COLUMNS
    away = tl.where(ok, values - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(away * away, 1) / COLUMNS + eps)
    gain = tl.load(weight + column, mask=column_ok, other=0.0).to(tl.float32)
    result = away * scale[:, None] * gain[None, :]
    if BIAS:
        result += tl.load(bias + column, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    at = token * out_stride_token + head * out_stride_head
    tl.store(out + at[:, None] + column[None, :], result.to(out.dtype.element_ty), mask=ok)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows less their mean, over their standard deviation, times weight, plus bias: x's shape and dtype.

    Args:
        x: [tokens, n] or [tokens, heads, n], n <= 32,768, f32, f16 or bf16, last axis contiguous.
        weight: [n].
        bias: [n]; None: no bias.
        eps: added to the variance.
        residual: of x's shape and dtype, added to x first; it is changed to the sum.
        out: where to write, of x's shape and dtype, x itself if wished; made if None.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    rows = check_rows("x", x, x.device)
    check_tensor("weight", weight, (rows.columns,), FLOATS, x.device)
    if bias is not None:
        check_tensor("bias", bias, (rows.columns,), FLOATS, x.device)
    added = rows if residual is None else check_same_form("residual", residual, x)
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    written = check_same_form("out", out, x)
    if not eps >= 0:
        raise ValueError(f"eps: is {eps}; at least 0 is expected")
    check_can_launch("x", x, layer_norm_kernel)
    if not rows.rows:
        return out
    tiles = row_tiles(rows.columns)
    layer_norm_kernel[(triton.cdiv(rows.rows, tiles.rows),)](
        x,
        x if residual is None else residual,
        weight,
        weight if bias is None else bias,
        out,
        rows.rows,
        rows.heads,
        rows.token_stride,
        rows.head_stride,
        added.token_stride,
        added.head_stride,
        written.token_stride,
        written.head_stride,
        eps,
        COLUMNS=rows.columns,
        ADD=residual is not None,
        BIAS=bias is not None,
        ROWS=tiles.rows,
        BLOCK=tiles.block,
        num_warps=tiles.num_warps,
    )
    return out


def layer_norm_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in float64 and changing nothing: the result, and the sum before its rounding."""
    total = x.double() if residual is None else x.double() + residual.double()
    seen = total if residual is None else total.to(x.dtype).double()
    away = seen - seen.mean(dim=-1, keepdim=True)
    result = away / (away.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight.double()
    return result + (0.0 if bias is None else bias.double()), total
