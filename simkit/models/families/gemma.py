"""Gemma 1 to 3."""

from dataclasses import replace

from simkit.models.architecture import FFN, Architecture, Layer
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


def gemma(fields: ConfigFields) -> Architecture:
    """Gemma 1, 2 and 3 (text): tied embeddings, wide heads; 2 and 3 with four norms a layer and alternating windows."""
    layers = layer_count(fields)
    model_type = fields.text("model_type")
    biased = fields.flag("attention_bias", False)
    attention = grouped_attention(fields, qkv_bias=biased, output_bias=biased)
    ffns: list[FFN] = [gated_ffn(fields)] * layers
    if model_type == "gemma":
        return decoder_of(fields, [Layer(attention, ffn) for ffn in ffns], tied=True)
    # Gemma 2: every other layer, the first windowed. Gemma 3: five windowed, then a full one.
    period = 2 if model_type == "gemma2" else fields.positive("sliding_window_pattern", 6)
    windowed = windowed_layers(fields, layers, lambda index: (index + 1) % period != 0)
    attention = replace(attention, qk_norm=model_type == "gemma3_text")
    window = window_tokens(fields, default=4096)
    return decoder_of(fields, with_window(attention, ffns, window, windowed, norms=4), tied=True)
