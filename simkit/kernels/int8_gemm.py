"""A linear layer with int8 weights and 16-bit activations (w8a16).

Math. A weight matrix W is kept as q = round(W / s), one scale a row (an output): s[o] = max_i |W[o, i]| / 127. Then

    out[t, o] = s[o] * sum_i x[t, i] q[o, i]

int8 is exact in f16 and bf16, so the only error over a product with W is that of q. Products are f32 on tensor cores.

Layout. x [tokens, n_in] f32, f16 or bf16, last axis contiguous; q i8[n_out, n_in], last axis contiguous; s f32[n_out];
out [tokens, n_out] of x's dtype.

Source: per-channel symmetric weight quantisation (Nagel et al. 2021, section 2.3), as W8A16 checkpoints have it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_can_launch, check_tensor
from simkit.kernels.configurations import NAMES, configuration
from simkit.kernels.jit import jit


class Int8Weights(NamedTuple):
    """A quantised matrix."""

    q: torch.Tensor  # i8[n_out, n_in]
    scale: torch.Tensor  # f32[n_out]


def quantize_int8(weights: torch.Tensor) -> Int8Weights:
    """Round [n_out, n_in] of any float dtype to int8 by row, ties to even; a row of zeros has scale 1."""
    largest = weights.abs().amax(dim=1).double()
    scale = torch.where(largest > 0, largest / 127, 1.0).float()
    q = (weights.double() / scale.double()[:, None]).round().clamp(-127, 127)
    return Int8Weights(q.to(torch.int8), scale)


@jit
def int8_gemm_kernel(
    x: tl.pointer_type,
    q: tl.pointer_type,
    scale: tl.pointer_type,
    out: tl.pointer_type,
    tokens: int,
    n_out: int,
    n_in: int,
    x_stride: int,
    q_stride: int,
    out_stride: int,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> None:
    """A tile of BLOCK_ROWS tokens by BLOCK_OUT outputs. Grid (tokens / BLOCK_ROWS, n_out / BLOCK_OUT)."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    output = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inner = tl.arange(0, BLOCK_IN)
    row_ok, output_ok = row < tokens, output < n_out
    x_at = x + row.to(tl.int64)[:, None] * x_stride + inner[None, :]
    q_at = q + output.to(tl.int64)[None, :] * q_stride + inner[:, None]
    acc = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
    for first in range(0, n_in, BLOCK_IN):
        inner_ok = first + inner < n_in
        a = tl.load(x_at + first, mask=row_ok[:, None] & inner_ok[None, :], other=0.0)
        b = tl.load(q_at + first, mask=inner_ok[:, None] & output_ok[None, :], other=0)
        acc += tl.dot(a, b.to(tl.float32).to(a.dtype), input_precision="ieee")
    acc *= tl.load(scale + output, mask=output_ok, other=0.0)[None, :]
    at = out + row.to(tl.int64)[:, None] * out_stride + output[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=row_ok[:, None] & output_ok[None, :])


def int8_gemm(x: torch.Tensor, weights: Int8Weights, out: torch.Tensor | None = None) -> torch.Tensor:
    """x by the quantised matrix, [tokens, n_out] of x's dtype.

    Args:
        x: [tokens, n_in], f32, f16 or bf16, last axis contiguous.
        weights: of `quantize_int8`.
        out: where to write; made if None.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    check_tensor("x", x, (None, None), FLOATS, x.device)
    tokens, n_in = x.shape
    check_tensor("weights.q", weights.q, (None, n_in), (torch.int8,), x.device)
    n_out = len(weights.q)
    check_tensor("weights.scale", weights.scale, (n_out,), (torch.float32,), x.device)
    out = torch.empty((tokens, n_out), dtype=x.dtype, device=x.device) if out is None else out
    check_tensor("out", out, (tokens, n_out), (x.dtype,), x.device)
    check_can_launch("x", x, int8_gemm_kernel)
    if not tokens or not n_out:
        return out
    entry = configuration("int8_gemm", x.device, dtype=NAMES[x.dtype], rows=tokens)
    tile = entry.constants
    int8_gemm_kernel[(triton.cdiv(tokens, tile["BLOCK_ROWS"]), triton.cdiv(n_out, tile["BLOCK_OUT"]))](
        x,
        *weights,
        out,
        tokens,
        n_out,
        n_in,
        x.stride(0),
        weights.q.stride(0),
        out.stride(0),
        **tile,
        num_warps=entry.num_warps,
        num_stages=entry.num_stages,
    )
    return out


def int8_gemm_reference(x: torch.Tensor, weights: Int8Weights) -> torch.Tensor:
    """The same in float64, f64[tokens, n_out]."""
    return x.double() @ (weights.q.double() * weights.scale.double()[:, None]).T
