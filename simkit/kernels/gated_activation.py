"""The activation of a feed-forward network: of its gate, times the up projection, or of a plain network's one input.

Math. With g the gate, u the up projection, or u = 1 where the network is plain:

    silu            out = g sigmoid(g) u                                          SwiGLU (Shazeer 2020; Llama)
    gelu            out = g (1 + erf(g / sqrt 2)) / 2 u                           GELU (Hendrycks and Gimpel 2016)
    gelu_tanh       out = g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) / 2 u     its tanh form (GPT-2, Gemma)
    relu            out = max(g, 0) u                                             OPT
    clamped_swish   out = g' sigmoid(1.702 g') (u' + 1), g' = min(g, 7), u' = u kept in [-7, 7]   GPT-OSS; gated only

Arithmetic is f32, rounded once to store; (1 + tanh z) / 2 is written sigmoid(2 z).

Layout. Gated: gate_up [tokens, 2 width], a row's gate and then its up projection, as vLLM's merged gate_up_proj gives
it; plain: x [tokens, width]. out [tokens, width]; f32, f16 or bf16. A program has a piece of one row.
"""

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_can_launch, check_tensor
from simkit.kernels.jit import jit

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
GATED_ACTIVATIONS = (*ACTIVATIONS, "clamped_swish")
MAX_BLOCK = 2048  # elements a program: 8 a thread of 8 warps, one load of 16 bytes in 16 bits from each of two inputs


@jit
def activation_kernel(
    x: tl.pointer_type,
    out: tl.pointer_type,
    width: int,
    x_stride: int,
    out_stride: int,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK values of one row. Grid (tokens, width / BLOCK rounded up)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = column < width
    gate = tl.load(x + row * x_stride + column, mask=ok, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        result = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        result = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        result = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    elif ACTIVATION == "relu":
        result = tl.maximum(gate, 0.0)
    else:
        kept = tl.minimum(gate, 7.0)
        result = kept * tl.sigmoid(1.702 * kept)
    if GATED:
        up = tl.load(x + row * x_stride + width + column, mask=ok, other=0.0).to(tl.float32)
        if ACTIVATION == "clamped_swish":
            up = tl.minimum(tl.maximum(up, -7.0), 7.0) + 1.0
        result = result * up
    tl.store(out + row * out_stride + column, result.to(out.dtype.element_ty), mask=ok)


def activation_block(width: int) -> tuple[int, int]:
    """Elements a program and warps, for rows of `width` results."""
    block = min(MAX_BLOCK, max(64, triton.next_power_of_2(width)))
    return block, max(1, block // 256)


def gated_activation(gate_up: torch.Tensor, activation: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """activation(gate) * up, [tokens, width] of gate_up's dtype.

    Args:
        gate_up: [tokens, 2 width], f32, f16 or bf16, last axis contiguous.
        activation: one of GATED_ACTIVATIONS.
        out: where to write, [tokens, width] of gate_up's dtype; made if None.

    Raises:
        ValueError: naming the argument that is off. Nothing is launched then.
    """
    check_tensor("gate_up", gate_up, (None, None), FLOATS, gate_up.device)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up: rows of {gate_up.shape[1]} values; an even number is expected, gates and ups")
    if activation not in GATED_ACTIVATIONS:
        raise ValueError(f"activation: is {activation!r}; one of {GATED_ACTIVATIONS} is expected")
    return _launch("gate_up", gate_up, gate_up.shape[1] // 2, activation, out, gated=True)


def plain_activation(x: torch.Tensor, activation: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """activation(x), [tokens, width] of x's dtype; x [tokens, width], activation one of ACTIVATIONS, else as above."""
    check_tensor("x", x, (None, None), FLOATS, x.device)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: is {activation!r}; one of {ACTIVATIONS} is expected")
    return _launch("x", x, x.shape[1], activation, out, gated=False)


def _launch(
    name: str, x: torch.Tensor, width: int, activation: str, out: torch.Tensor | None, gated: bool
) -> torch.Tensor:
    out = torch.empty((len(x), width), dtype=x.dtype, device=x.device) if out is None else out
    check_tensor("out", out, (len(x), width), (x.dtype,), x.device)
    check_can_launch(name, x, activation_kernel)
    if out.numel():
        block, warps = activation_block(width)
        activation_kernel[(len(x), triton.cdiv(width, block))](
            x,
            out,
            width,
            x.stride(0),
            out.stride(0),
            ACTIVATION=activation,
            GATED=gated,
            BLOCK=block,
            num_warps=warps,
        )
    return out


def plain_activation_reference(x: torch.Tensor, activation: str) -> torch.Tensor:
    """The same in float64."""
    gate = x.double()
    if activation == "silu":
        return gate / (1 + (-gate).exp())
    if activation == "gelu":
        return gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    if activation == "gelu_tanh":
        return gate * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    if activation == "relu":
        return gate.clamp(min=0)
    kept = gate.clamp(max=7)
    return kept / (1 + (-1.702 * kept).exp())


def gated_activation_reference(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """The same in float64."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    if activation == "clamped_swish":
        up = up.clamp(-7, 7) + 1
    return plain_activation_reference(gate, activation) * up
