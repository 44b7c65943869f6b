"""Nemotron-H and Nemotron 3."""

from dataclasses import replace

from simkit.models.architecture import FFN, Architecture, DenseFFN, Layer, MoE
from simkit.models.config_fields import ConfigFields
from simkit.models.families.parts import decoder_of, grouped_attention, layer_kinds, routed_experts, state_bytes
from simkit.models.linear_attention import LinearAttention


def nemotron_h(fields: ConfigFields) -> Architecture:
    """Nemotron-H and Nemotron 3: Mamba 2, a few layers of attention without positions, FFNs that are not gated.

    The file counts each mixer and each FFN as a layer; here an FFN belongs to the mixer before it.
    """
    blocks = layer_kinds(
        fields,
        "layers_block_type",
        {
            "mamba": "M",
            "linear_attention": "M",
            "attention": "*",
            "full_attention": "*",
            "moe": "E",
            "mlp": "-",
        },
    )
    blocks = blocks or list(fields.text("hybrid_override_pattern"))
    for place, block in enumerate(blocks):
        if block not in "M*E-" or (block in "E-" and (place == 0 or blocks[place - 1] in "E-")):
            raise fields.error(
                "hybrid_override_pattern", f"has {block!r} as block {place + 1}, which is not understood"
            )
    if len(blocks) != fields.positive("num_hidden_layers", len(blocks)) or not blocks:
        raise fields.error("hybrid_override_pattern", f"has {len(blocks)} blocks, not num_hidden_layers")
    biased = fields.flag("attention_bias", False)
    bias = fields.flag("mlp_bias", False)
    attention = grouped_attention(fields, qkv_bias=biased, output_bias=biased)
    mamba = LinearAttention(
        "Mamba2",
        heads=fields.positive("mamba_num_heads"),
        key_heads=fields.positive("n_groups"),
        key_dim=fields.positive("ssm_state_size"),
        value_dim=fields.positive("mamba_head_dim"),
        conv_kernel=fields.positive("conv_kernel", 4),
        conv_bias=fields.flag("use_conv_bias", True),
        output_bias=fields.flag("use_bias", False),
        state_bytes_per_number=state_bytes(fields, "mamba_ssm_cache_dtype", "float32"),
    )
    layers: list[Layer] = []
    for block in blocks:
        if block in "M*":
            layers.append(Layer(mamba if block == "M" else attention, None, norms=1))
        else:
            ffn: FFN = _nemotron_experts(fields, bias) if block == "E" else _plain(fields, bias)
            layers[-1] = replace(layers[-1], ffn=ffn, norms=2)
    return decoder_of(fields, layers)


def _plain(fields: ConfigFields, bias: bool) -> DenseFFN:
    return DenseFFN(fields.positive("intermediate_size"), gated=False, bias=bias)


def _nemotron_experts(fields: ConfigFields, bias: bool) -> MoE:
    if bias:
        raise fields.error("mlp_bias", "is true with experts, which is not understood")
    return replace(
        routed_experts(fields, "n_routed_experts", "moe_intermediate_size"),
        shared_width=fields.positive("moe_shared_expert_intermediate_size") * fields.count("n_shared_experts", 1),
        correction_bias=True,
        gated=False,
        latent=fields.positive("moe_latent_size") if fields.has("moe_latent_size") else 0,
    )
