"""GLM-4 to 4.5; GLM-5 is as DeepSeek."""

from dataclasses import replace

from simkit.models.architecture import Architecture, Layer
from simkit.models.config_fields import ConfigFields
from simkit.models.families.parts import decoder_of, dense_then_moe, gated_ffn, grouped_attention, layer_count


def glm(fields: ConfigFields) -> Architecture:
    """GLM-4: 9B (two norms a layer) and 0414 (four); biases on q, k, v only."""
    attention = grouped_attention(fields, qkv_bias=fields.flag("attention_bias", False))
    norms = 4 if fields.text("model_type") == "glm4" else 2
    return decoder_of(fields, [Layer(attention, gated_ffn(fields), norms)] * layer_count(fields))


def glm_moe(fields: ConfigFields) -> Architecture:
    """GLM-4.5 and 4.5-Air, Solar Open: grouped attention, optional norms on q and k, routed and shared experts."""
    if fields.text("model_type") == "solar_open":
        fields = fields.with_defaults({"head_dim": 128})
    attention = grouped_attention(fields, qkv_bias=fields.flag("attention_bias", False))
    attention = replace(attention, qk_norm=fields.flag("use_qk_norm", False))
    return decoder_of(fields, dense_then_moe(fields, attention, correction_bias=True))
