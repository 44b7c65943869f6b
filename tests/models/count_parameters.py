"""Count the parameters of small models of each family with transformers' own classes, and write counts.json.

    pip install transformers==5.23.0 && python tests/models/count_parameters.py

No weight is made (torch's meta device). Configurations are small and odd, so that each term of a count shows.
"""

import json
from pathlib import Path

import torch
import transformers

TEXT = {
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 777,
    "max_position_embeddings": 8192,
}
WIDE = {"head_dim": 48}  # of families whose files may give it
ROUTED = {"moe_intermediate_size": 56, "n_routed_experts": 12, "num_experts_per_tok": 3, "n_shared_experts": 2}
LOCAL = {"num_local_experts": 10, "num_experts_per_tok": 3}
NUMBERED = {"num_experts": 12, "num_experts_per_tok": 3}
ERNIE = {"moe_intermediate_size": 56, "moe_num_experts": 12, "moe_k": 3, "moe_num_shared_experts": 2}
LATENT = {"q_lora_rank": 96, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 40}
DELTA = {
    "linear_num_value_heads": 8,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_conv_kernel_dim": 4,
}
SHARED_EXPERT = {**NUMBERED, "moe_intermediate_size": 56, "shared_expert_intermediate_size": 40}
MAMBA = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 24,
    "n_groups": 2,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    **ROUTED,
    "moe_shared_expert_intermediate_size": 72,
    "n_shared_experts": 1,
}
GRANITE_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_d_head": 48,
    "mamba_expand": 2,
    "mamba_d_conv": 4,
    "shared_intermediate_size": 88,
    "layer_types": ["linear_attention", "full_attention"] * 3,
}
MULTIMODAL_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 8, 8]}}
QWEN_VISION = {"depth": 3, "num_heads": 4, "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN3_VISION = {
    **QWEN_VISION,
    "hidden_size": 96,
    "intermediate_size": 200,
    "out_hidden_size": 192,
    "patch_size": 16,
    "num_position_embeddings": 64,
}
PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 24,
    "image_size": 140,
    "patch_size": 14,
}

Config = dict[str, object]
CASES: list[tuple[str, Config]] = [
    ("ministral3", WIDE),
    ("granite", {"mlp_bias": True, "attention_bias": True}),
    ("smollm3", {}),
    ("smollm3", {"tie_word_embeddings": False}),
    ("seed_oss", WIDE),
    ("seed_oss", {**WIDE, "attention_out_bias": True, "mlp_bias": True}),
    ("granitemoe", LOCAL),
    ("granitemoeshared", {**LOCAL, "shared_intermediate_size": 88}),
    ("arcee", {"mlp_bias": True}),
    ("arcee", {"attention_bias": True}),
    ("ernie4_5", {}),
    ("ernie4_5", {**WIDE, "use_bias": True, "tie_word_embeddings": False}),
    ("ernie4_5_moe", {**ERNIE, "moe_layer_start_index": 1, "moe_layer_end_index": 4}),
    ("ernie4_5_moe", {**ERNIE, "moe_layer_start_index": 2, "moe_layer_end_index": 5, "moe_layer_interval": 2}),
    ("hunyuan_v1_dense", {"head_dim": 32}),
    ("dots1", {**ROUTED, "first_k_dense_replace": 1}),
    ("exaone4", {"sliding_window": 512}),
    ("olmo2", {}),
    ("olmo3", {"sliding_window": 512}),
    ("olmoe", NUMBERED),
    ("starcoder2", {}),
    ("starcoder2", {"use_bias": False, "sliding_window": 512}),
    ("cohere", {}),
    ("cohere", {"use_qk_norm": True}),
    ("cohere2", WIDE),
    ("stablelm", {"use_qkv_bias": True}),
    ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    ("nemotron", WIDE),
    ("nemotron", {"attention_bias": True, "mlp_bias": True}),
    ("gpt_neox", {"num_key_value_heads": 6}),
    ("minimax_m2", {**WIDE, **LOCAL}),
    ("solar_open", ROUTED),
    ("glm4_moe_lite", {**ROUTED, **LATENT}),
    ("qwen3_next", {**WIDE, **DELTA, **SHARED_EXPERT}),
    ("qwen3_5_text", {**WIDE, **DELTA}),
    ("qwen3_5_moe_text", {**WIDE, **DELTA, **SHARED_EXPERT}),
    ("nemotron_h", {**WIDE, **MAMBA, "hybrid_override_pattern": "M-M*EM"}),
    ("nemotron_h", {**WIDE, **MAMBA, "hybrid_override_pattern": "MEM*EM", "moe_latent_size": 64}),
    ("granitemoehybrid", {**GRANITE_MAMBA, **LOCAL}),
    ("granitemoehybrid", {**GRANITE_MAMBA, "num_local_experts": 0, "mamba_proj_bias": True}),
]
WRAPPED: list[tuple[str, Config]] = [
    ("qwen2_vl", {"text_config": TEXT, "vision_config": {**QWEN_VISION, "embed_dim": 96, "hidden_size": 192}}),
    (
        "qwen2_5_vl",
        {
            "text_config": TEXT,
            "vision_config": {
                **QWEN_VISION,
                "hidden_size": 96,
                "out_hidden_size": 192,
                "intermediate_size": 200,
                "fullatt_block_indexes": [1],
            },
        },
    ),
    (
        "qwen3_vl",
        {"text_config": {**TEXT, **WIDE}, "vision_config": {**QWEN3_VISION, "deepstack_visual_indexes": [0, 2]}},
    ),
    (
        "qwen3_vl_moe",
        {
            "text_config": {**TEXT, **WIDE, **NUMBERED, "moe_intermediate_size": 56},
            "vision_config": {**QWEN3_VISION, "deepstack_visual_indexes": [1]},
        },
    ),
    ("qwen3_5", {"text_config": {**TEXT, **WIDE, **DELTA}, "vision_config": QWEN3_VISION}),
    ("qwen3_5_moe", {"text_config": {**TEXT, **WIDE, **DELTA, **SHARED_EXPERT}, "vision_config": QWEN3_VISION}),
    (
        "mistral3",
        {
            "text_config": {**TEXT, **WIDE, "model_type": "mistral"},
            "vision_config": PIXTRAL,
            "tie_word_embeddings": False,
        },
    ),
    (
        "mistral3",
        {
            "text_config": {**TEXT, **WIDE, "model_type": "ministral3", "tie_word_embeddings": True},
            "vision_config": PIXTRAL,
            "tie_word_embeddings": True,
            "multimodal_projector_bias": True,
        },
    ),
]


def counted(model_type: str, config: Config, wrapped: bool) -> int:
    """Parameters, and the buffers that steer experts, which checkpoints hold as well."""
    tokens: Config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    told = json.loads(json.dumps(config))
    if wrapped:
        told["text_config"] |= {**tokens, **(MULTIMODAL_ROPE if model_type.startswith("qwen") else {})}
    read = transformers.CONFIG_MAPPING[model_type](**told, **({} if wrapped else tokens))
    kind = transformers.AutoModelForImageTextToText if wrapped else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(read)
    steering = sum(buffer.numel() for name, buffer in model.named_buffers() if "e_score_correction" in name)
    return sum(parameter.numel() for parameter in model.parameters()) + steering


def main() -> None:
    """Write the file beside this one."""
    cases = [(kind, {**TEXT, **more}, False) for kind, more in CASES] + [(kind, more, True) for kind, more in WRAPPED]
    rows = [
        {"parameters": counted(kind, config, wrapped), "config": {"model_type": kind, **config}}
        for kind, config, wrapped in cases
    ]
    written = {"source": f"transformers {transformers.__version__}", "models": rows}
    Path(__file__).with_name("counts.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
