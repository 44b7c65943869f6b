"""Dense decoders of makers with one family each: Llama's shape but for norms, biases or an FFN without a gate."""

from dataclasses import replace

from simkit.models.architecture import Architecture, DenseFFN, Layer
from simkit.models.config_fields import ConfigFields
from simkit.models.families.parts import (
    decoder_of,
    gated_ffn,
    grouped_attention,
    layer_count,
    window_tokens,
    windowed_layers,
    with_window,
)


def olmo(fields: ConfigFields) -> Architecture:
    """OLMo 2 and 3: norms behind attention and FFN, and over all heads of q and of k; 3 with windows."""
    layers = layer_count(fields)
    biased = fields.flag("attention_bias", False)
    attention = replace(
        grouped_attention(fields, qkv_bias=biased, output_bias=biased), qk_norm=True, norms_all_heads=True
    )
    window = window_tokens(fields, default=4096) if fields.text("model_type") == "olmo3" else None
    windowed = windowed_layers(fields, layers, lambda index: (index + 1) % 4 != 0)
    return decoder_of(fields, with_window(attention, [gated_ffn(fields)] * layers, window, windowed, norms=2))


def exaone(fields: ConfigFields) -> Architecture:
    """EXAONE 4: norms behind attention and FFN, and on q and k; three layers in four with a window in the large one."""
    layers = layer_count(fields)
    attention = replace(grouped_attention(fields), qk_norm=True)
    windowed = windowed_layers(fields, layers, lambda index: (index + 1) % 4 != 0)
    return decoder_of(
        fields, with_window(attention, [gated_ffn(fields)] * layers, window_tokens(fields), windowed, norms=2)
    )


def hunyuan(fields: ConfigFields) -> Architecture:
    """Hunyuan, dense: norms on q and k."""
    biased = fields.flag("attention_bias", False)
    attention = replace(grouped_attention(fields, qkv_bias=biased, output_bias=biased), qk_norm=True)
    return decoder_of(fields, [Layer(attention, gated_ffn(fields))] * layer_count(fields))


def ernie(fields: ConfigFields) -> Architecture:
    """ERNIE 4.5, dense."""
    fields = fields.with_defaults({"head_dim": 128})
    biased = fields.flag("use_bias", False)
    attention = grouped_attention(fields, qkv_bias=biased, output_bias=biased)
    return decoder_of(fields, [Layer(attention, gated_ffn(fields, biased))] * layer_count(fields), tied=True)


def arcee(fields: ConfigFields) -> Architecture:
    """Arcee (AFM): an FFN of two matrices."""
    biased = fields.flag("attention_bias", False)
    attention = grouped_attention(fields, qkv_bias=biased, output_bias=biased)
    ffn = DenseFFN(fields.positive("intermediate_size"), gated=False, bias=fields.flag("mlp_bias", False))
    return decoder_of(fields, [Layer(attention, ffn)] * layer_count(fields))


def nemotron(fields: ConfigFields) -> Architecture:
    """Nemotron 4 and Minitron: LayerNorm, an FFN of two matrices."""
    return replace(arcee(fields), norm_has_bias=True)


def starcoder(fields: ConfigFields) -> Architecture:
    """StarCoder 2: LayerNorm, biases everywhere, an FFN of two matrices, a window."""
    biased = fields.flag("use_bias", True)
    attention = grouped_attention(fields, qkv_bias=biased, output_bias=biased)
    attention = replace(attention, window_tokens=window_tokens(fields))
    ffn = DenseFFN(fields.positive("intermediate_size"), gated=False, bias=biased)
    decoder = decoder_of(fields, [Layer(attention, ffn)] * layer_count(fields), tied=True)
    return replace(decoder, norm_has_bias=True)


def cohere(fields: ConfigFields) -> Architecture:
    """Command R (R+ with norms over all heads of q and of k) and A: one norm for attention and FFN in parallel."""
    layers = layer_count(fields)
    biased = fields.flag("attention_bias", False)
    attention = grouped_attention(fields, qkv_bias=biased, output_bias=biased)
    if fields.text("model_type") == "cohere":
        attention = replace(attention, qk_norm=fields.flag("use_qk_norm", False), norms_all_heads=True)
        return decoder_of(fields, [Layer(attention, gated_ffn(fields), norms=1)] * layers, tied=True)
    period = fields.positive("sliding_window_pattern", 4)
    windowed = windowed_layers(fields, layers, lambda index: (index + 1) % period != 0)
    window = window_tokens(fields, default=4096)
    return decoder_of(
        fields, with_window(attention, [gated_ffn(fields)] * layers, window, windowed, norms=1), tied=True
    )


def stablelm(fields: ConfigFields) -> Architecture:
    """StableLM 2: LayerNorm; the 12B one has norms over all heads and one norm for attention and FFN in parallel."""
    attention = grouped_attention(fields, qkv_bias=fields.flag("use_qkv_bias", False))
    attention = replace(attention, qk_norm=fields.flag("qk_layernorm", False), norms_all_heads=True)
    norms = 1 if fields.flag("use_parallel_residual", False) else 2
    decoder = decoder_of(fields, [Layer(attention, gated_ffn(fields), norms)] * layer_count(fields))
    return replace(decoder, norm_has_bias=True)


def neox(fields: ConfigFields) -> Architecture:
    """GPT-NeoX and Pythia: LayerNorm, biases everywhere, an FFN of two matrices."""
    biased = fields.flag("attention_bias", True)
    attention = grouped_attention(fields, qkv_bias=biased, output_bias=biased)
    ffn = DenseFFN(fields.positive("intermediate_size"), gated=False, bias=True)
    decoder = decoder_of(fields, [Layer(attention, ffn)] * layer_count(fields))
    return replace(decoder, norm_has_bias=True)
