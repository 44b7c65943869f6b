"""Every family that is understood, against parameters that transformers' own classes have (count_parameters.py)."""

import json
from pathlib import Path

import pytest

from simkit.errors import InputError
from simkit.models.architecture import Architecture
from simkit.models.huggingface import architecture_from_config, read_config

COUNTS = json.loads((Path(__file__).with_name("counts.json")).read_text())["models"]


def parse(config: dict[str, object], **changes: object) -> Architecture:
    return architecture_from_config({**config, **changes}, "config.json")


@pytest.mark.parametrize("row", COUNTS, ids=[f"{i}-{row['config']['model_type']}" for i, row in enumerate(COUNTS)])
def test_all_weights_are_counted(row: dict[str, object]) -> None:
    assert isinstance(row["config"], dict)
    assert parse(row["config"]).parameters == row["parameters"]


def config_of(model_type: str) -> dict[str, object]:
    found = next(row["config"] for row in COUNTS if row["config"]["model_type"] == model_type)
    assert isinstance(found, dict)
    return found


def test_windows_are_where_the_family_has_them() -> None:
    """OLMo 3 and EXAONE 4: three layers in four (transformers' layer_types for files that have none)."""
    for family in ("olmo3", "exaone4"):
        windows = [layer.attention.window_tokens for layer in parse(config_of(family), sliding_window=512).layers]
        assert windows == [512, 512, 512, None, 512, 512]
    command_a = parse(config_of("cohere2"), sliding_window=1024, sliding_window_pattern=2)
    assert [layer.attention.window_tokens for layer in command_a.layers] == [1024, None] * 3
    command_r = parse(config_of("cohere"), sliding_window=1024)
    assert all(layer.attention.window_tokens is None for layer in command_r.layers)


def test_early_files_of_qwen_vl_have_no_text_config() -> None:
    nested = config_of("qwen2_5_vl")
    text, vision = nested["text_config"], nested["vision_config"]
    assert isinstance(text, dict)
    flat = {"model_type": "qwen2_5_vl", "vision_config": vision, **text}
    assert parse(flat).parameters == parse(nested).parameters


def test_a_wrapper_says_whether_embeddings_are_tied() -> None:
    """Qwen3-VL's text_config does not; its wrapper does."""
    untied, tied = (parse(config_of("qwen3_vl"), tie_word_embeddings=tie) for tie in (False, True))
    assert untied.parameters - tied.parameters == 777 * 192


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("qwen3_next", {"layer_types": ["linear_attention"] * 5}, "'layer_types' has 5 entries for 6 layers"),
        ("qwen3_next", {"layer_types": ["mamba"] * 6}, "'layer_types' holds 'mamba'"),
        ("qwen3_next", {"layer_types": ["linear_attention"] * 6}, "without a layer of attention"),
        ("qwen3_next", {"linear_num_key_heads": 3}, "'linear_num_key_heads' is 3, which does not divide 8"),
        ("qwen3_next", {"mamba_ssm_dtype": "int8"}, "'mamba_ssm_dtype' is 'int8'; float32, float16, bfloat16"),
        ("nemotron_h", {"hybrid_override_pattern": "EM*-M-"}, "has 'E' as block 1"),
        ("nemotron_h", {"hybrid_override_pattern": "M-X-M-"}, "has 'X' as block 3"),
        ("nemotron_h", {"hybrid_override_pattern": "M-M"}, "has 3 blocks, not num_hidden_layers"),
        ("granitemoehybrid", {"mamba_n_heads": 7}, "'mamba_n_heads' is 7"),
        ("ernie4_5_moe", {"use_bias": True}, "'use_bias' is true with experts"),
        ("ernie4_5_moe", {"moe_k": 13}, "'moe_k' is 13, more than the 12 of moe_num_experts"),
        ("minimax_m2", {"shared_intermediate_size": 64}, "'shared_intermediate_size' is not 0"),
        ("qwen3_vl", {"vision_config": {"model_type": "clip"}}, "'model_type' is 'clip', which is not understood"),
        ("qwen3_vl", {"text_config": {"model_type": "clip"}}, "'model_type' is 'clip', which is not understood"),
        ("qwen3_vl", {"vision_config": {"depth": 3, "hidden_size": 96}}, "is missing"),
    ],
)
def test_what_is_not_possible_is_named(family: str, changes: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        parse(config_of(family), **changes)


PLAIN = {**config_of("granite"), "tie_word_embeddings": False}
NVFP4 = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16}


def test_modelopts_own_file_is_read_beside_the_config(tmp_path: Path) -> None:
    """nvidia/DeepSeek-V3.1-NVFP4 and others have no quantization_config; without the other file they read as bf16."""
    (tmp_path / "config.json").write_text(json.dumps(PLAIN))
    assert read_config(tmp_path).native_weights == "bf16"
    told = {"producer": {"name": "modelopt"}, "quantization": {**NVFP4, "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(told))
    read = read_config(tmp_path)
    assert (read.native_weights, "attention" in read.native_groups) == ("nvfp4", True)
    (tmp_path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"hf_quant_config\.json: field 'quantization'"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("left", "groups"),
    [
        (["model.layers.0.self_attn.q_a_proj"], {"attention"}),
        (["model.layers.1.self_attn*"], {"attention"}),
        # the norms and the small matrices of attention are at 16 bits in any case
        (["model.layers.0.self_attn.indexer.k_norm", "model.layers.0.self_attn.q_norm"], set()),
        (["model.layers.0.linear_attn.conv1d", "model.layers.0.linear_attn.in_proj_a"], set()),
        (["model.language_model.layers.0.linear_attn*"], {"attention"}),
        (["backbone.layers.4.mixer.in_proj"], {"attention"}),
        (["backbone.layers.1.mixer.gate", "backbone.layers.4.mixer.conv1d"], set()),
        (["model.layers.10.mlp.shared_experts*"], {"shared_experts"}),
        ([r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"], {"dense_ffn"}),
        (["model.layers.0.mlp.gate", "model.visual.blocks.0.self_attn"], set()),
    ],
)
def test_groups_left_at_16_bits(left: list[str], groups: set[str]) -> None:
    every = {"attention", "dense_ffn", "experts", "shared_experts"}
    for key in ("ignore", "exclude_modules", "modules_to_not_convert"):
        read = parse(PLAIN, quantization_config={**NVFP4, key: left})
        assert every - read.native_groups == groups


def test_a_wrappers_text_model_may_have_the_quantization() -> None:
    """moonshotai/Kimi-K2.5: experts at 4 bits, said in its text_config."""
    nested = config_of("qwen3_vl_moe")
    text = nested["text_config"]
    assert isinstance(text, dict)
    weights = {"weights": {"num_bits": 4, "type": "int"}}
    ignore = ["lm_head", "re:.*self_attn.*"]
    told = {"quant_method": "compressed-tensors", "config_groups": {"group_0": weights}, "ignore": ignore}
    read = parse(nested, text_config={**text, "quantization_config": told})
    assert (read.native_weights, "attention" in read.native_groups) == ("int4", False)
