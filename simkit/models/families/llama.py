"""Llama, Mistral and Mixtral, and the families of their shape."""

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
    windowed_layers,
)


def llama(fields: ConfigFields) -> Architecture:
    """Llama 2 and 3, CodeLlama, Yi, Mistral, Nemo, Ministral 3, Granite 3, SmolLM 3, Seed-OSS."""
    layers = layer_count(fields)
    model_type = fields.text("model_type")
    biased = fields.flag("attention_bias", model_type == "seed_oss")
    output_biased = fields.flag("attention_out_bias", False) if model_type == "seed_oss" else biased
    attention = grouped_attention(fields, qkv_bias=biased, output_bias=output_biased)
    if model_type == "mistral" or (model_type == "smollm3" and fields.flag("use_sliding_window", False)):
        attention = replace(attention, window_tokens=window_tokens(fields))
    layer = Layer(attention, gated_ffn(fields, fields.flag("mlp_bias", False)))
    return decoder_of(fields, [layer] * layers, tied=model_type == "smollm3")


def mixtral(fields: ConfigFields) -> Architecture:
    """Mixtral: Mistral with experts."""
    attention = replace(grouped_attention(fields), window_tokens=window_tokens(fields))
    layer = Layer(attention, routed_experts(fields, "num_local_experts", "intermediate_size"))
    return decoder_of(fields, [layer] * layer_count(fields))


def llama4(fields: ConfigFields) -> Architecture:
    """Llama 4: three layers in four see a chunk, the fourth (without rotary positions) sees all; one expert a token."""
    layers = layer_count(fields)
    biased = fields.flag("attention_bias", False)
    attention = grouped_attention(fields, qkv_bias=biased, output_bias=biased)
    chunk = window_tokens(fields, "attention_chunk_size", default=8192)
    near = replace(attention, window_tokens=chunk, chunked=chunk is not None)
    moe = replace(
        routed_experts(fields, "num_local_experts", "intermediate_size"),
        shared_width=fields.positive("intermediate_size"),
    )
    dense = DenseFFN(fields.positive("intermediate_size_mlp"))
    step = fields.positive("interleave_moe_layer_step", 1)
    # `no_rope_layers` says 1 where a layer has rotary positions; empty means every fourth has not
    rotary = fields.switches("no_rope_layers", layers) or [(index + 1) % 4 != 0 for index in range(layers)]
    rotary = windowed_layers(fields, layers, lambda index: rotary[index])
    return decoder_of(
        fields,
        [Layer(near if rotary[i] else attention, dense if (i + 1) % step else moe) for i in range(layers)],
    )
