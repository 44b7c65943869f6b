"""How many weights a vision encoder adds: an engine that serves text with a multimodal checkpoint loads it too."""

import math
from collections.abc import Callable

from simkit.models.config_fields import ConfigFields


def siglip(fields: ConfigFields, _outer: ConfigFields, text_hidden: int) -> int:
    """SigLIP with Gemma 3's projector (transformers `modeling_siglip.py`, `modeling_gemma3.py`): 417 M in Gemma 3."""
    hidden, ffn = fields.positive("hidden_size"), fields.positive("intermediate_size")
    patch = fields.positive("patch_size")
    embedding = (3 * patch**2 + 1) * hidden + (fields.positive("image_size") // patch) ** 2 * hidden
    projector = hidden * text_hidden + hidden
    return embedding + fields.positive("num_hidden_layers") * _encoder_layer(hidden, ffn) + 2 * hidden + projector


def llama4(fields: ConfigFields, _outer: ConfigFields, text_hidden: int) -> int:
    """Llama 4's encoder, pixel-shuffle adapter and projector (transformers `modeling_llama4.py`): 870 M."""
    hidden, ffn = fields.positive("hidden_size"), fields.positive("intermediate_size")
    patch, middle = fields.positive("patch_size"), fields.positive("projector_input_dim")
    out = fields.positive("projector_output_dim")
    patches = (fields.positive("image_size") // patch) ** 2
    embedding = 3 * patch**2 * hidden + (patches + 2) * hidden  # a class token, and its position
    adapter = ffn * middle + middle * out + out * text_hidden
    return embedding + fields.positive("num_hidden_layers") * _encoder_layer(hidden, ffn) + 4 * hidden + adapter


def qwen2(fields: ConfigFields, _outer: ConfigFields, _text_hidden: int) -> int:
    """Qwen2-VL's encoder and merger (transformers `modeling_qwen2_vl.py`)."""
    hidden = fields.positive("embed_dim")
    merged = hidden * fields.positive("spatial_merge_size", 2) ** 2
    layers = fields.positive("depth") * _encoder_layer(hidden, fields.positive("mlp_ratio", 4) * hidden)
    return _patches_in_time(fields, hidden) + layers + 2 * hidden + _two(merged, fields.positive("hidden_size"))


def qwen2_5(fields: ConfigFields, _outer: ConfigFields, text_hidden: int) -> int:
    """Qwen2.5-VL's: RMSNorm, and an FFN with a gate (transformers `modeling_qwen2_5_vl.py`)."""
    hidden, ffn = fields.positive("hidden_size"), fields.positive("intermediate_size")
    merged = hidden * fields.positive("spatial_merge_size", 2) ** 2
    layer = 4 * (hidden * hidden + hidden) + 3 * hidden * ffn + 2 * ffn + hidden + 2 * hidden
    out = fields.positive("out_hidden_size", text_hidden)
    return _patches_in_time(fields, hidden) + fields.positive("depth") * layer + hidden + _two(merged, out)


def qwen3(fields: ConfigFields, _outer: ConfigFields, text_hidden: int) -> int:
    """Qwen3-VL's and Qwen 3.5's: learnt positions, and a merger for each layer that feeds the text's first layers.

    (transformers `modeling_qwen3_vl.py`.)
    """
    hidden, depth = fields.positive("hidden_size"), fields.positive("depth")
    merged = hidden * fields.positive("spatial_merge_size", 2) ** 2
    out = fields.positive("out_hidden_size", text_hidden)
    deep = len(fields.indices("deepstack_visual_indexes", depth))
    embedding = _patches_in_time(fields, hidden) + hidden + fields.positive("num_position_embeddings") * hidden
    layers = depth * _encoder_layer(hidden, fields.positive("intermediate_size"))
    return embedding + layers + 2 * hidden + _two(merged, out) + deep * (2 * merged + _two(merged, out))


def pixtral(fields: ConfigFields, outer: ConfigFields, text_hidden: int) -> int:
    """Pixtral's encoder with Mistral Small 3's merger and projector (transformers `modeling_mistral3.py`)."""
    hidden, ffn = fields.positive("hidden_size"), fields.positive("intermediate_size")
    embedding = fields.positive("num_channels", 3) * fields.positive("patch_size") ** 2 * hidden + hidden
    layers = fields.positive("num_hidden_layers") * (4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden)
    merger = hidden + outer.positive("spatial_merge_size", 2) ** 2 * hidden * hidden
    biases = 2 * text_hidden * outer.flag("multimodal_projector_bias", False)
    return embedding + layers + merger + hidden * text_hidden + text_hidden * text_hidden + biases


def moonvit(fields: ConfigFields, _outer: ConfigFields, text_hidden: int) -> int:
    """Kimi K2.5's encoder and projector (transformers `modeling_kimi_k25.py`)."""
    hidden = fields.positive("vt_hidden_size")
    rows, columns = fields.positive("init_pos_emb_height"), fields.positive("init_pos_emb_width")
    embedding = 3 * fields.positive("patch_size") ** 2 * hidden + hidden + rows * columns * hidden
    layer = _encoder_layer(hidden, fields.positive("vt_intermediate_size"))
    merged = hidden * math.prod(fields.positives("merge_kernel_size") or [2, 2])
    return embedding + fields.positive("vt_num_hidden_layers") * layer + 4 * hidden + _two(merged, text_hidden)


def _patches_in_time(fields: ConfigFields, hidden: int) -> int:
    """A convolution over patches of a few frames."""
    channels = fields.positive("in_channels", fields.positive("in_chans", 3))
    return channels * fields.positive("temporal_patch_size", 2) * fields.positive("patch_size", 14) ** 2 * hidden


def _two(width: int, out: int) -> int:
    """A linear layer as wide as its input, and one from there, with biases."""
    return width * width + width + width * out + out


def _encoder_layer(hidden: int, ffn: int) -> int:
    """Multi-head attention, a plain FFN and two LayerNorms, all with biases."""
    return 4 * (hidden * hidden + hidden) + 2 * hidden * ffn + ffn + hidden + 4 * hidden


ENCODERS: dict[str, Callable[[ConfigFields, ConfigFields, int], int]] = {
    "siglip_vision_model": siglip,
    "llama4_vision_model": llama4,
    "qwen2_vl": qwen2,
    "qwen2_5_vl": qwen2_5,
    "qwen3_vl": qwen3,
    "qwen3_vl_moe": qwen3,
    "qwen3_5": qwen3,
    "qwen3_5_moe": qwen3,
    "pixtral": pixtral,
    "kimi_k25": moonvit,
}
