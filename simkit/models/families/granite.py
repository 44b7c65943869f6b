"""Granite 3 with experts, and Granite 4."""

from dataclasses import replace

from simkit.models.architecture import FFN, Architecture, Attention, DenseFFN, GroupedAttention, Layer
from simkit.models.config_fields import ConfigFields
from simkit.models.families.parts import decoder_of, grouped_attention, layer_count, layer_kinds, routed_experts
from simkit.models.linear_attention import LinearAttention


def granite_hybrid(fields: ConfigFields) -> Architecture:
    """Granite 4: Mamba 2 and a few layers of attention, each with a shared FFN beside experts, or alone."""
    layers = layer_count(fields)
    names = {"mamba": "linear", "linear_attention": "linear", "attention": "full", "full_attention": "full"}
    kinds = layer_kinds(fields, "layer_types", names, layers)
    kinds = kinds or layer_kinds(fields, "layers_block_type", names, layers) or ["linear"] * layers
    hidden, expand = fields.positive("hidden_size"), fields.positive("mamba_expand", 2)
    heads = fields.positive("mamba_n_heads")
    if expand * hidden % heads:
        raise fields.error("mamba_n_heads", f"is {heads}, which does not divide mamba_expand x hidden_size")
    mamba = LinearAttention(
        "Mamba2",
        heads=heads,
        key_heads=fields.positive("mamba_n_groups", 1),
        key_dim=fields.positive("mamba_d_state"),
        value_dim=expand * hidden // heads,
        conv_kernel=fields.positive("mamba_d_conv", 4),
        conv_bias=fields.flag("mamba_conv_bias", True),
        output_bias=fields.flag("mamba_proj_bias", False),
        state_bytes_per_number=2,  # the model's own, where nobody says otherwise (vLLM mamba2_state_dtype)
    )
    biased = fields.flag("attention_bias", False)
    attention: GroupedAttention = grouped_attention(fields, qkv_bias=biased, output_bias=biased)
    shared = fields.positive("shared_intermediate_size")
    ffn: FFN = DenseFFN(shared)
    if fields.count("num_local_experts", 0):
        ffn = replace(routed_experts(fields, "num_local_experts", "intermediate_size"), shared_width=shared)
    mixers: dict[str, Attention] = {"linear": mamba, "full": attention}
    return decoder_of(fields, [Layer(mixers[kind], ffn) for kind in kinds])


def granite_moe(fields: ConfigFields) -> Architecture:
    """Granite 3 with experts, of some models beside a shared FFN."""
    biased = fields.flag("attention_bias", False)
    moe = replace(
        routed_experts(fields, "num_local_experts", "intermediate_size"),
        shared_width=fields.count("shared_intermediate_size", 0),
    )
    layer = Layer(grouped_attention(fields, qkv_bias=biased, output_bias=biased), moe)
    return decoder_of(fields, [layer] * layer_count(fields))
