"""DeepSeek V2 to V3.2, and what has its layers."""

from simkit.models.architecture import Architecture, Indexer, LatentAttention
from simkit.models.config_fields import ConfigFields
from simkit.models.families.parts import decoder_of, dense_then_moe


def deepseek(fields: ConfigFields) -> Architecture:
    """DeepSeek V2 to V3.2, Kimi K2, GLM-4.7-Flash and GLM-5: latent attention, of some with a sparse indexer."""
    if fields.text("model_type") == "glm4_moe_lite" and not fields.has("mlp_layer_types"):
        fields = fields.with_defaults({"first_k_dense_replace": 1})
    indexer = None
    if fields.has("index_topk"):
        indexer = Indexer(
            fields.positive("index_n_heads"), fields.positive("index_head_dim"), fields.positive("index_topk")
        )
    attention = LatentAttention(
        heads=fields.positive("num_attention_heads"),
        q_rank=fields.positive("q_lora_rank") if fields.has("q_lora_rank") else None,
        kv_rank=fields.positive("kv_lora_rank"),
        nope_dim=fields.positive("qk_nope_head_dim"),
        rope_dim=fields.positive("qk_rope_head_dim"),
        value_dim=fields.positive("v_head_dim"),
        qkv_bias=fields.flag("attention_bias", False),
        indexer=indexer,
    )
    balanced = fields.text("topk_method", "noaux_tc") == "noaux_tc"
    return decoder_of(fields, dense_then_moe(fields, attention, correction_bias=balanced))
