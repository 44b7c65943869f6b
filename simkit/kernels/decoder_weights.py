"""Random weights of a decoder layer, laid out as the kernels and torch's linear layers read them.

Matrices are [outputs, inputs], normal with variance 1 / inputs, so that activations keep their scale; norms are near
what they are in trained models, 1 (or 0 where an offset of 1 is added), and not equal to it, so that a norm left out
shows. Biases and sinks are small and not 0, for the same reason.

Shapes: h hidden, H query heads, K key-value heads, d head_dim, w width of a network, E experts.
"""

from typing import NamedTuple

import torch

from simkit.kernels.decoder_details import DecoderDetails
from simkit.models.architecture import DenseFFN, GroupedAttention, Layer, MoE, named_kind


class NormWeights(NamedTuple):
    """One norm; without bias it is RMSNorm."""

    weight: torch.Tensor  # [h]
    bias: torch.Tensor | None  # [h]


class AttentionWeights(NamedTuple):
    """Projections of one attention."""

    qkv: torch.Tensor  # [(H + 2 K) d, h]
    qkv_bias: torch.Tensor | None
    out: torch.Tensor  # [h, H d]
    out_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [d]
    k_norm: torch.Tensor | None  # [d]
    sinks: torch.Tensor | None  # f32[H]


class DenseWeights(NamedTuple):
    """A gated network (gates and then ups), or a plain one."""

    up: torch.Tensor  # [2 w, h] gated, [w, h] plain
    up_bias: torch.Tensor | None
    down: torch.Tensor  # [h, w]
    down_bias: torch.Tensor | None


class MoEWeights(NamedTuple):
    """A router, its experts, and the expert that all tokens take."""

    router: torch.Tensor  # [E, h]
    router_bias: torch.Tensor | None  # [E]
    correction_bias: torch.Tensor | None  # f32[E]
    gate_up: torch.Tensor  # [E, 2 w, h]
    gate_up_bias: torch.Tensor | None  # [E, 2 w]
    down: torch.Tensor  # [E, h, w]
    down_bias: torch.Tensor | None  # [E, h]
    shared: DenseWeights | None
    shared_gate: torch.Tensor | None  # [1, h]


class LayerWeights(NamedTuple):
    """One layer: one norm (attention and network in parallel), two, or four (Gemma 2: around both)."""

    norms: tuple[NormWeights, ...]
    attention: AttentionWeights
    ffn: DenseWeights | MoEWeights


class RandomWeights:
    """A source of random tensors of one dtype on one device, the same for a seed and a kind of device."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._random = torch.Generator(device).manual_seed(seed)

    def normal(self, shape: tuple[int, ...], scale: float, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal values of standard deviation `scale`; of the weights' dtype if None."""
        # drawn in f32: bf16 draws would have few distinct values
        drawn = torch.randn(shape, generator=self._random, device=self.device, dtype=torch.float32)
        return drawn.mul_(scale).to(dtype or self.dtype)

    def matrix(self, *shape: int) -> torch.Tensor:
        """Normal with variance 1 / inputs, the last axis."""
        return self.normal(shape, float(shape[-1]) ** -0.5)

    def bias(self, *shape: int) -> torch.Tensor:
        """Small numbers."""
        return self.normal(shape, 0.1)

    def norm(self, size: int, offset: float, bias: bool) -> NormWeights:
        """Near 1, less the offset that is added to it."""
        weight = (self.normal((size,), 0.1, torch.float32) + 1.0 - offset).to(self.dtype)
        return NormWeights(weight, self.bias(size) if bias else None)


def random_layer(
    layer: Layer, hidden: int, norm_has_bias: bool, details: DecoderDetails, random: RandomWeights
) -> LayerWeights:
    """Weights of one layer.

    Raises:
        ValueError: the layer is of a kind not computed here: latent, linear, chunked or gated attention, no FFN.
    """
    attention = layer.attention
    if not isinstance(attention, GroupedAttention):
        raise ValueError(f"layer: has {named_kind(attention)} attention; MHA, GQA or MQA is expected")
    if attention.chunked:
        raise ValueError("layer: attends within chunks (Llama 4); full or windowed attention is expected")
    if attention.output_gate:
        raise ValueError("layer: has a gate on its attention's output (Qwen3-Next); attention without is expected")
    if layer.ffn is None or (isinstance(layer.ffn, MoE) and (layer.ffn.latent or not layer.ffn.gated)):
        raise ValueError("layer: has no FFN, or experts without gates; a dense FFN or gated experts are expected")
    return LayerWeights(
        tuple(random.norm(hidden, details.norm_offset, norm_has_bias) for _ in range(layer.norms)),
        _random_attention(attention, hidden, details, random),
        _random_moe(layer.ffn, hidden, random)
        if isinstance(layer.ffn, MoE)
        else _random_dense(layer.ffn, hidden, random),
    )


def _random_attention(
    attention: GroupedAttention, hidden: int, details: DecoderDetails, random: RandomWeights
) -> AttentionWeights:
    query = attention.heads * attention.head_dim
    width = query + 2 * attention.kv_heads * attention.head_dim
    normed = attention.qk_norm
    return AttentionWeights(
        qkv=random.matrix(width, hidden),
        qkv_bias=random.bias(width) if attention.qkv_bias else None,
        out=random.matrix(hidden, query),
        out_bias=random.bias(hidden) if attention.output_bias else None,
        q_norm=random.norm(attention.head_dim, details.norm_offset, False).weight if normed else None,
        k_norm=random.norm(attention.head_dim, details.norm_offset, False).weight if normed else None,
        sinks=random.normal((attention.heads,), 1.0, torch.float32) if attention.sinks else None,
    )


def _random_dense(ffn: DenseFFN, hidden: int, random: RandomWeights) -> DenseWeights:
    width = ffn.width * (2 if ffn.gated else 1)
    return DenseWeights(
        up=random.matrix(width, hidden),
        up_bias=random.bias(width) if ffn.bias else None,
        down=random.matrix(hidden, ffn.width),
        down_bias=random.bias(hidden) if ffn.bias else None,
    )


def _random_moe(ffn: MoE, hidden: int, random: RandomWeights) -> MoEWeights:
    experts, width = ffn.experts, ffn.width
    shared = DenseFFN(ffn.shared_width) if ffn.shared_width else None
    return MoEWeights(
        router=random.matrix(experts, hidden),
        router_bias=random.bias(experts) if ffn.bias else None,
        correction_bias=random.normal((experts,), 0.1, torch.float32) if ffn.correction_bias else None,
        gate_up=random.matrix(experts, 2 * width, hidden),
        gate_up_bias=random.bias(experts, 2 * width) if ffn.bias else None,
        down=random.matrix(experts, hidden, width),
        down_bias=random.bias(experts, hidden) if ffn.bias else None,
        shared=_random_dense(shared, hidden, random) if shared else None,
        shared_gate=random.matrix(1, hidden) if ffn.shared_gate else None,
    )
