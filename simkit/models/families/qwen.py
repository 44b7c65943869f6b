"""Qwen 2 to 3.5."""

from dataclasses import replace

from simkit.models.architecture import FFN, Architecture, Attention, Layer
from simkit.models.config_fields import ConfigFields
from simkit.models.families.parts import (
    decoder_of,
    gated_ffn,
    grouped_attention,
    layer_count,
    layer_kinds,
    routed_experts,
    state_bytes,
    window_tokens,
    windowed_layers,
    with_window,
)
from simkit.models.linear_attention import LinearAttention


def qwen(fields: ConfigFields) -> Architecture:
    """Qwen 2 and 2.5 (biases on q, k, v) and MiMo, Qwen 3 (norms on q, k), and the MoE of both; their -VL's text."""
    layers = layer_count(fields)
    model_type = fields.text("model_type")
    if model_type.startswith("qwen2") or model_type == "mimo":
        attention = grouped_attention(fields, qkv_bias=fields.flag("qkv_bias", True))
    else:
        biased = fields.flag("attention_bias", False)
        attention = replace(grouped_attention(fields, qkv_bias=biased, output_bias=biased), qk_norm=True)
    ffns: list[FFN] = [gated_ffn(fields)] * layers
    if "_moe" in model_type:
        moe = routed_experts(fields, "num_experts", "moe_intermediate_size")
        if model_type == "qwen2_moe":
            moe = replace(moe, shared_width=fields.positive("shared_expert_intermediate_size"), shared_gate=True)
        step, dense = fields.positive("decoder_sparse_step", 1), fields.indices("mlp_only_layers", layers)
        ffns = [ffns[i] if i in dense or (i + 1) % step else moe for i in range(layers)]
    window = window_tokens(fields) if fields.flag("use_sliding_window", False) else None
    first = fields.count("max_window_layers", layers)
    windowed = windowed_layers(fields, layers, lambda index: index >= first)
    return decoder_of(fields, with_window(attention, ffns, window, windowed, norms=2))


def qwen_next(fields: ConfigFields) -> Architecture:
    """Qwen3-Next and Qwen 3.5, dense and MoE: Gated DeltaNet, and every fourth layer attention with a gated output."""
    layers = layer_count(fields)
    model_type = fields.text("model_type")
    heads, key_heads = fields.positive("linear_num_value_heads"), fields.positive("linear_num_key_heads")
    if heads % key_heads:
        raise fields.error("linear_num_key_heads", f"is {key_heads}, which does not divide {heads} value heads")
    delta = LinearAttention(
        "GDN",
        heads=heads,
        key_heads=key_heads,
        key_dim=fields.positive("linear_key_head_dim"),
        value_dim=fields.positive("linear_value_head_dim"),
        conv_kernel=fields.positive("linear_conv_kernel_dim", 4),
        # vLLM keeps the state in the model's 16 bits where the file names no type (gated_delta_net_state_dtype)
        state_bytes_per_number=state_bytes(fields, "mamba_ssm_dtype", "bfloat16"),
    )
    biased = fields.flag("attention_bias", False)
    attention = replace(
        grouped_attention(fields, qkv_bias=biased, output_bias=biased),
        qk_norm=True,
        output_gate=fields.flag("attn_output_gate", True),
    )
    ffns: list[FFN]
    if model_type == "qwen3_5_text":
        ffns = [gated_ffn(fields)] * layers
    else:
        moe = replace(
            routed_experts(fields, "num_experts", "moe_intermediate_size"),
            shared_width=fields.positive("shared_expert_intermediate_size"),
            shared_gate=True,
        )
        step, dense = fields.positive("decoder_sparse_step", 1), fields.indices("mlp_only_layers", layers)
        ffns = [gated_ffn(fields) if i in dense or (i + 1) % step else moe for i in range(layers)]
    names = {"linear_attention": "linear", "full_attention": "full"}
    kinds = layer_kinds(fields, "layer_types", names, layers) or _every(fields, layers)
    mixers: dict[str, Attention] = {"linear": delta, "full": attention}
    return decoder_of(fields, [Layer(mixers[kind], ffn) for kind, ffn in zip(kinds, ffns, strict=True)])


def _every(fields: ConfigFields, layers: int) -> list[str]:
    interval = fields.positive("full_attention_interval", 4)
    return ["linear" if (index + 1) % interval else "full" for index in range(layers)]
