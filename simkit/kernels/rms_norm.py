"""RMSNorm of rows, with the residual added on the way.

Math. For each row x of n values, with a residual row r:

    h = x + r                     rounded to the type of x; h = x where there is no residual
    out = h / sqrt(mean(h^2) + eps) * (weight_offset + weight)

The sum h replaces the residual, so that the next layer adds to it. Arithmetic is f32, rounded once to store. Gemma's
weights are stored less 1: `weight_offset` is 1 there and 0 elsewhere.

Layout. x, residual and out [tokens, n] or [tokens, heads, n] (the norm of each head's query or key: Qwen 3, Gemma 3) of
f32, f16 or bf16, any strides but on the last axis; weight [n] of any of the three. A program holds whole rows.

Sources: Zhang and Sennrich 2019; the fused sum as in vLLM's `fused_add_rms_norm`; the offset as in Hugging Face's
`GemmaRMSNorm`.
"""

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_can_launch, check_tensor
from simkit.kernels.jit import jit
from simkit.kernels.row_tiles import check_rows, check_same_form, row_tiles


@jit
def rms_norm_kernel(
    x: tl.pointer_type,
    residual: tl.pointer_type,
    weight: tl.pointer_type,
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
    weight_offset: float,
    COLUMNS: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """ROWS rows. Grid (rows / ROWS rounded up)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = row // heads, row % heads
    column = tl.arange(0, BLOCK)
    ok = (row < rows)[:, None] & (column < COLUMNS)[None, :]
    at = token * x_stride_token + head * x_stride_head
    values = tl.load(x + at[:, None] + column[None, :], mask=ok, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
    if ADD:
        at = token * residual_stride_token + head * residual_stride_head
        sums = residual + at[:, None] + column[None, :]
        values += tl.load(sums, mask=ok, other=0.0).to(tl.float32)
        rounded = values.to(residual.dtype.element_ty)
        tl.store(sums, rounded, mask=ok)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1) / COLUMNS + eps)
    gain = tl.load(weight + column, mask=column < COLUMNS, other=0.0).to(tl.float32) + weight_offset
    result = values * scale[:, None] * gain[None, :]
    at = token * out_stride_token + head * out_stride_head
    tl.store(out + at[:, None] + column[None, :], result.to(out.dtype.element_ty), mask=ok)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows over their root mean square, times weight: x's shape and dtype.

    Args:
        x: [tokens, n] or [tokens, heads, n], n <= 32,768, f32, f16 or bf16, last axis contiguous.
        weight: [n].
        eps: added to the mean square.
        residual: of x's shape and dtype, added to x first; it is changed to the sum.
        weight_offset: added to weight.
        out: where to write, of x's shape and dtype, x itself if wished; made if None.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    rows = check_rows("x", x, x.device)
    check_tensor("weight", weight, (rows.columns,), FLOATS, x.device)
    added = rows if residual is None else check_same_form("residual", residual, x)
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    written = check_same_form("out", out, x)
    if not eps >= 0:
        raise ValueError(f"eps: is {eps}; at least 0 is expected")
    check_can_launch("x", x, rms_norm_kernel)
    if not rows.rows:
        return out
    tiles = row_tiles(rows.columns)
    rms_norm_kernel[(triton.cdiv(rows.rows, tiles.rows),)](
        x,
        x if residual is None else residual,
        weight,
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
        weight_offset,
        COLUMNS=rows.columns,
        ADD=residual is not None,
        ROWS=tiles.rows,
        BLOCK=tiles.block,
        num_warps=tiles.num_warps,
    )
    return out


def rms_norm_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    weight_offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in float64 and changing nothing: the result, and the sum before its rounding."""
    total = x.double() if residual is None else x.double() + residual.double()
    seen = total if residual is None else total.to(x.dtype).double()
    mean_square = seen.square().mean(dim=-1, keepdim=True)
    return seen / (mean_square + eps).sqrt() * (weight.double() + weight_offset), total
