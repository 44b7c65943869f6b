"""Decoders with experts, of makers with one family each: MiniMax-M2, OLMoE, ERNIE 4.5, dots.llm1."""

from dataclasses import replace

from simkit.models.architecture import FFN, Architecture, Layer
from simkit.models.config_fields import ConfigFields
from simkit.models.families.parts import (
    decoder_of,
    dense_then_moe,
    gated_ffn,
    grouped_attention,
    layer_count,
    routed_experts,
)


def minimax(fields: ConfigFields) -> Architecture:
    """MiniMax-M2: norms over all heads of q and of k, experts without a shared one."""
    attention = replace(grouped_attention(fields), qk_norm=fields.flag("use_qk_norm", True), norms_all_heads=True)
    if fields.count("shared_intermediate_size", 0):
        raise fields.error("shared_intermediate_size", "is not 0, which is not understood")
    moe = replace(routed_experts(fields, "num_local_experts", "intermediate_size"), correction_bias=True)
    return decoder_of(fields, [Layer(attention, moe)] * layer_count(fields))


def olmoe(fields: ConfigFields) -> Architecture:
    """OLMoE: norms over all heads of q and of k, experts alone."""
    biased = fields.flag("attention_bias", False)
    attention = replace(
        grouped_attention(fields, qkv_bias=biased, output_bias=biased), qk_norm=True, norms_all_heads=True
    )
    layer = Layer(attention, routed_experts(fields, "num_experts", "intermediate_size"))
    return decoder_of(fields, [layer] * layer_count(fields))


def ernie_moe(fields: ConfigFields) -> Architecture:
    """ERNIE 4.5 with experts in the layers from one index to another, beside shared ones."""
    if fields.flag("use_bias", False):
        raise fields.error("use_bias", "is true with experts, which is not understood")
    layers, attention = layer_count(fields), grouped_attention(fields)
    width = fields.positive("moe_intermediate_size")
    moe = replace(
        routed_experts(fields, "moe_num_experts", "moe_intermediate_size", "moe_k"),
        shared_width=fields.count("moe_num_shared_experts", 0) * width,
        correction_bias=True,
    )
    first, period = fields.count("moe_layer_start_index", 1), fields.positive("moe_layer_interval", 1)
    last = fields.count("moe_layer_end_index", layers - 1)
    ffns: list[FFN] = [
        moe if first <= i <= last and (i + 1) % period == 0 else gated_ffn(fields) for i in range(layers)
    ]
    return decoder_of(fields, [Layer(attention, ffn) for ffn in ffns], tied=True)


def dots(fields: ConfigFields) -> Architecture:
    """dots.llm1: norms on q and k, then as GLM-4.5."""
    biased = fields.flag("attention_bias", False)
    attention = replace(grouped_attention(fields, qkv_bias=biased, output_bias=biased), qk_norm=True)
    return decoder_of(fields, dense_then_moe(fields, attention, correction_bias=True))
