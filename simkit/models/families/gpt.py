"""GPT-2, OPT and GPT-OSS."""

from dataclasses import replace

from simkit.models.architecture import FFN, Architecture, DenseFFN, GroupedAttention, Layer
from simkit.models.config_fields import ConfigFields
from simkit.models.families.parts import (
    decoder_of,
    grouped_attention,
    layer_count,
    routed_experts,
    window_tokens,
    windowed_layers,
    with_window,
)


def gpt2(fields: ConfigFields) -> Architecture:
    """GPT-2: LayerNorm, learnt positions, plain FFN, tied embeddings, biases everywhere."""
    hidden, heads = fields.positive("n_embd"), fields.positive("n_head")
    if hidden % heads:
        raise fields.error("n_head", f"is {heads}, which does not divide n_embd {hidden}")
    attention = GroupedAttention(heads, heads, hidden // heads, qkv_bias=True, output_bias=True)
    ffn = DenseFFN(fields.positive("n_inner", 4 * hidden), gated=False, bias=True)
    context = fields.positive("n_positions")
    return Architecture(
        name=fields.place,
        model_type="gpt2",
        hidden=hidden,
        vocab=fields.positive("vocab_size"),
        layers=(Layer(attention, ffn),) * layer_count(fields, "n_layer"),
        max_context_tokens=context,
        tied_embeddings=True,
        norm_has_bias=True,
        learned_positions=context,
    )


def opt(fields: ConfigFields) -> Architecture:
    """OPT: as GPT-2 with other names; two unused rows in the position table."""
    hidden = fields.positive("hidden_size")
    if fields.positive("word_embed_proj_dim", hidden) != hidden:
        raise fields.error("word_embed_proj_dim", "differs from hidden_size (OPT-350m), which is not understood")
    attention = grouped_attention(fields, qkv_bias=True, output_bias=True)
    ffn = DenseFFN(fields.positive("ffn_dim"), gated=False, bias=True)
    decoder = decoder_of(fields, [Layer(attention, ffn)] * layer_count(fields), tied=True)
    return replace(decoder, norm_has_bias=True, learned_positions=decoder.max_context_tokens + 2)


def gpt_oss(fields: ConfigFields) -> Architecture:
    """GPT-OSS: attention sinks, biases in experts and router, every other layer windowed."""
    layers = layer_count(fields)
    biased = fields.flag("attention_bias", True)
    attention = replace(grouped_attention(fields, qkv_bias=biased, output_bias=biased), sinks=True)
    moe = replace(routed_experts(fields, "num_local_experts", "intermediate_size"), bias=True)
    windowed = windowed_layers(fields, layers, lambda index: index % 2 == 0)
    ffns: list[FFN] = [moe] * layers
    return decoder_of(fields, with_window(attention, ffns, window_tokens(fields), windowed, norms=2))
