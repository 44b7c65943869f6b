"""Reading config.json: real files of 13 models, and every way a file can be wrong."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkit.errors import InputError
from simkit.models.architecture import Architecture
from simkit.models.catalog import load_model
from simkit.models.huggingface import LARGEST_CONFIG_BYTES, architecture_from_config, read_config
from simkit.models.sampling import sorts_vocabulary

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}

# safetensors totals on the models' Hugging Face pages; GLM-5.2: 744 B of the GLM-5 report (no next-token layer)
REAL_FILES = {
    "codellama-34b-instruct-hf": 33_743_970_304,
    "deepseek-v2-lite": 15_706_484_224,
    "glm-5.2-fp8": 744e9,
    "llama-2-7b-hf": 6_738_415_616,
    "llama-3.1-70b-instruct": 70_553_706_496,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-4-scout-17b-16e-instruct-fp8-dynamic": 108_641_793_536,
    "mistral-nemo-instruct-2407": 12_247_782_400,
    "mixtral-8x7b-v0.1": 46_702_792_704,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen3-14b": 14_768_307_200,
    "qwen3-30b-a3b": 30_532_122_624,
    "yi-34b": 34_388_917_248,
}

# the same models in the bundled catalog, whose fields were written down by hand
IN_CATALOG = {
    "codellama-34b-instruct-hf": "codellama-34b",
    "deepseek-v2-lite": "deepseek-v2-lite",
    "llama-2-7b-hf": "llama-2-7b",
    "llama-3.1-70b-instruct": "llama-3.1-70b",
    "llama-3.1-8b-instruct": "llama-3.1-8b",
    "mistral-nemo-instruct-2407": "mistral-nemo",
    "mixtral-8x7b-v0.1": "mixtral-8x7b",
    "qwen2.5-7b-instruct": "qwen2.5-7b",
    "qwen3-14b": "qwen3-14b",
    "qwen3-30b-a3b": "qwen3-30b-a3b",
    "yi-34b": "yi-34b",
}


def parse(**changes: object) -> Architecture:
    """LLAMA with fields changed, or removed where the value is `...`."""
    fields = {name: value for name, value in {**LLAMA, **changes}.items() if value is not ...}
    return architecture_from_config(fields, "config.json")


@pytest.mark.parametrize(("stem", "published"), REAL_FILES.items())
def test_real_file_gives_the_published_parameters(shared: Path, stem: str, published: float) -> None:
    arch = read_config(shared / "hf_configs" / f"{stem}.json")
    assert arch.parameters == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(("stem", "name"), IN_CATALOG.items())
def test_catalog_agrees_with_the_real_file(shared: Path, stem: str, name: str) -> None:
    real, bundled = read_config(shared / "hf_configs" / f"{stem}.json"), load_model(name)
    for field in ("hidden", "vocab", "layers", "max_context_tokens", "tied_embeddings", "native_weights"):
        assert getattr(real, field) == getattr(bundled, field), field


def test_ignored_modules_stay_at_16_bits(shared: Path) -> None:
    arch = read_config(shared / "hf_configs" / "llama-4-scout-17b-16e-instruct-fp8-dynamic.json")
    assert arch.native_weights == "fp8"
    assert arch.weight_bits("experts") == 8
    assert arch.weight_bits("attention") == 16


def test_folder_with_a_config_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_config(tmp_path).layers == read_config(tmp_path / "config.json").layers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": ...}, ("model_type", "missing")),
        ({"model_type": "lama"}, ("model_type", "did you mean 'llama'")),
        ({"hidden_size": ...}, ("hidden_size", "missing")),
        ({"hidden_size": "64"}, ("hidden_size", "'64'", "whole number")),
        ({"hidden_size": 64.0}, ("hidden_size", "64.0")),
        ({"hidden_size": True}, ("hidden_size", "True")),
        ({"hidden_size": 0}, ("hidden_size", "0")),
        ({"vocab_size": -1}, ("vocab_size", "-1")),
        ({"vocab_size": 10**30}, ("vocab_size",)),
        ({"num_hidden_layers": 10**8}, ("num_hidden_layers", "at most")),
        ({"num_attention_heads": 5}, ("num_attention_heads", "does not divide")),
        ({"num_key_value_heads": 3}, ("num_key_value_heads", "does not divide")),
        ({"tie_word_embeddings": "no"}, ("tie_word_embeddings", "true or false")),
        ({"torch_dtype": "int3"}, ("torch_dtype", "int3")),
        ({"quantization_config": {"quant_method": "magic"}}, ("quant_method", "magic")),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, ("bits", "3")),
        ({"quantization_config": [1]}, ("quantization_config", "object")),
        ({"vision_config": {"model_type": "eye"}}, ("vision_config", "eye")),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3},
            ("num_experts_per_tok", "more than the 2"),
        ),
        (
            {"model_type": "gpt_oss", "num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["x"]},
            ("layer_types",),
        ),
        ({"intermediate_size": ..., "intermediate_sise": 5}, ("intermediate_size", "intermediate_sise")),
    ],
)
def test_bad_field_is_named(changes: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        parse(**changes)
    message = str(caught.value)
    assert message.startswith("config.json")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b" " * (LARGEST_CONFIG_BYTES + 1), "larger than"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "nothing.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(field=st.sampled_from([*LLAMA, "quantization_config", "torch_dtype", "head_dim", "vision_config"]), value=JSON)
def test_any_value_gives_an_architecture_or_an_input_error(field: str, value: object) -> None:
    try:
        arch = parse(**{field: value})
    except InputError as error:
        assert str(error).startswith("config.json")  # noqa: PT017
    else:
        assert arch.parameters > 0


@given(
    heads=st.integers(1, 8),
    group=st.integers(1, 4),
    head_dim=st.integers(1, 64),
    layers=st.integers(1, 6),
    ffn=st.integers(1, 256),
    tied=st.booleans(),
)
def test_llama_parameters_are_the_sum_of_its_matrices(
    heads: int, group: int, head_dim: int, layers: int, ffn: int, tied: bool
) -> None:
    hidden, kv = 96, heads
    arch = parse(
        hidden_size=hidden,
        num_attention_heads=heads * group,
        num_key_value_heads=kv,
        head_dim=head_dim,
        num_hidden_layers=layers,
        intermediate_size=ffn,
        tie_word_embeddings=tied,
    )
    shapes = [(hidden, heads * group * head_dim), (heads * group * head_dim, hidden)] + [(hidden, kv * head_dim)] * 2
    shapes += [(hidden, ffn)] * 3 + [(hidden, 1)] * 2
    total = layers * sum(rows * columns for rows, columns in shapes) + hidden + (1 if tied else 2) * 100 * hidden
    assert arch.parameters == total


def test_a_model_of_one_s_own_is_called_by_its_folder_or_its_file(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512}
    folder = tmp_path / "my-llama"
    folder.mkdir()
    for name in ("config.json", "small.json"):
        (folder / name).write_text(json.dumps(config))
    assert read_config(folder / "config.json").name == read_config(folder).name == "my-llama"
    assert read_config(folder / "small.json").name == "small"


@pytest.mark.parametrize(
    ("told", "sorts"),
    [(None, False), ({"temperature": 0.6}, False), ({"top_p": 0.9}, True), ({"top_k": 20}, True),
     ({"top_p": 1.0, "top_k": 0}, False), ({"top_p": 1, "top_k": -1}, False)],
)  # fmt: skip
def test_a_model_of_one_s_own_is_sampled_as_its_folder_says(
    tmp_path: Path, told: dict[str, float] | None, sorts: bool
) -> None:
    """As vLLM takes its defaults from generation_config.json; what the folder is called says nothing."""
    folder = tmp_path / "llama-3-mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    if told is not None:
        (folder / "generation_config.json").write_text(json.dumps(told))
    architecture = read_config(folder)
    assert architecture.name == "llama-3-mine"
    assert sorts_vocabulary(architecture) is sorts
    assert sorts_vocabulary(architecture, "truncated")
    assert not sorts_vocabulary(architecture, "plain")


def test_a_broken_generation_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"generation_config\.json: holds a list"):
        read_config(tmp_path)
