"""How many weights a vision encoder adds: an engine that serves text with a multimodal checkpoint loads it too."""

from collections.abc import Callable

from simkit.models.config_fields import ConfigFields


def siglip(fields: ConfigFields, text_hidden: int) -> int:
    """SigLIP with Gemma 3's projector (transformers `modeling_siglip.py`, `modeling_gemma3.py`): 417 M in Gemma 3."""
    hidden, ffn = fields.positive("hidden_size"), fields.positive("intermediate_size")
    patch = fields.positive("patch_size")
    embedding = (3 * patch**2 + 1) * hidden + (fields.positive("image_size") // patch) ** 2 * hidden
    projector = hidden * text_hidden + hidden
    return embedding + fields.positive("num_hidden_layers") * _encoder_layer(hidden, ffn) + 2 * hidden + projector


def llama4(fields: ConfigFields, text_hidden: int) -> int:
    """Llama 4's encoder, pixel-shuffle adapter and projector (transformers `modeling_llama4.py`): 870 M."""
    hidden, ffn = fields.positive("hidden_size"), fields.positive("intermediate_size")
    patch, middle = fields.positive("patch_size"), fields.positive("projector_input_dim")
    out = fields.positive("projector_output_dim")
    patches = (fields.positive("image_size") // patch) ** 2
    embedding = 3 * patch**2 * hidden + (patches + 2) * hidden  # a class token, and its position
    adapter = ffn * middle + middle * out + out * text_hidden
    return embedding + fields.positive("num_hidden_layers") * _encoder_layer(hidden, ffn) + 4 * hidden + adapter


def _encoder_layer(hidden: int, ffn: int) -> int:
    """Multi-head attention, a plain FFN and two LayerNorms, all with biases."""
    return 4 * (hidden * hidden + hidden) + 2 * hidden * ffn + ffn + hidden + 4 * hidden


ENCODERS: dict[str, Callable[[ConfigFields, int], int]] = {"siglip_vision_model": siglip, "llama4_vision_model": llama4}
