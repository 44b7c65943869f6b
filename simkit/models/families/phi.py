"""Phi 1.5 to 4, and Phi 3.5 MoE."""

from dataclasses import replace

from simkit.models.architecture import Architecture, DenseFFN, Layer
from simkit.models.config_fields import ConfigFields
from simkit.models.families.parts import (
    decoder_of,
    gated_ffn,
    grouped_attention,
    layer_count,
    routed_experts,
    window_tokens,
)


def phi(fields: ConfigFields) -> Architecture:
    """Phi 1.5 and 2: one LayerNorm feeds attention and a plain FFN in parallel; biases everywhere."""
    attention = grouped_attention(fields, qkv_bias=True, output_bias=True)
    ffn = DenseFFN(fields.positive("intermediate_size"), gated=False, bias=True)
    decoder = decoder_of(fields, [Layer(attention, ffn, norms=1)] * layer_count(fields))
    return replace(decoder, norm_has_bias=True, lm_head_bias=True)


def phi3(fields: ConfigFields) -> Architecture:
    """Phi 3, 3.5 and 4."""
    attention = replace(grouped_attention(fields), window_tokens=window_tokens(fields))
    return decoder_of(fields, [Layer(attention, gated_ffn(fields))] * layer_count(fields))


def phimoe(fields: ConfigFields) -> Architecture:
    """Phi 3.5 MoE: LayerNorm, biased attention and lm_head, 16 experts."""
    biased = fields.flag("attention_bias", False)
    attention = replace(
        grouped_attention(fields, qkv_bias=biased, output_bias=biased), window_tokens=window_tokens(fields)
    )
    layer = Layer(attention, routed_experts(fields, "num_local_experts", "intermediate_size"))
    decoder = decoder_of(fields, [layer] * layer_count(fields))
    return replace(decoder, norm_has_bias=True, lm_head_bias=fields.flag("lm_head_bias", False))
