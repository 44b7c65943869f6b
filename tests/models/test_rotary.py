"""Rotary tables, against what vLLM's pull 44738 says that three models could save, and its own rules of rows."""

import pytest

from simkit.errors import InputError
from simkit.models.architecture import Architecture
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.huggingface import architecture_from_config
from simkit.models.layout import Layout
from simkit.models.memory import CONTEXT_BYTES, ROTARY_IN_CONTEXT_BYTES, plan_memory

MIB = 1 << 20
LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 262144,
}


def read(**others: object) -> Architecture:
    return architecture_from_config({**LLAMA, **others}, "config.json")


def test_what_a_shorter_limit_would_save_is_what_was_published() -> None:
    """With positions to 32,768 instead of 262,144: 224 MB of Qwen3-VL, 336 MB of Gemma 4 (head widths 256 and 512)."""
    shorter = {"max_position_embeddings": 32768}

    def saved(**config: object) -> float:
        return (read(**config).rotary_bytes - read(**{**config, **shorter}).rotary_bytes) / MIB

    assert saved(head_dim=128, rope_scaling={"type": "default", "mrope_section": [24, 20, 20]}) == 224
    assert saved(head_dim=256) + saved(head_dim=512) == 336


@pytest.mark.parametrize(
    ("model", "mib"),
    [
        ("llama-3.1-8b", 32),  # 131,072 x 128 x 2 bytes
        ("qwen2.5-7b", 8),
        ("gpt-oss-120b", 32),  # 131,072 x 64 x 4 bytes
        ("deepseek-v3", 20),  # 4,096 x 40 rows of 64
        ("gemma-3-27b", 288),  # 8 x 131,072 rows where layers see everything, 131,072 where they see a window
        ("llama-4-scout", 2560),  # 10,485,760 rows
        ("gpt2", 0),  # its positions are learnt
    ],
)
def test_tables_of_known_models(model: str, mib: int) -> None:
    assert load_model(model).rotary_bytes == mib * MIB


@pytest.mark.parametrize(
    ("scaling", "rows"),
    [
        (None, 262144),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 262144),
        ({"type": "yarn", "factor": 4, "original_max_position_embeddings": 40960}, 163840),
        ({"type": "linear", "factor": 2.0}, 524288),
        ({"type": "longrope", "original_max_position_embeddings": 4096, "short_factor": [1.0]}, 266240),
        ({"type": "of tomorrow"}, 262144),
    ],
)
def test_scaling_stretches_the_table(scaling: dict[str, object] | None, rows: int) -> None:
    assert read(rope_scaling=scaling).rotary_bytes == rows * 128 * 2
    if scaling is not None:
        parameters = {**scaling, "rope_type": scaling.get("rope_type", scaling.get("type"))}
        assert read(rope_parameters=parameters).rotary_bytes == rows * 128 * 2


def test_a_part_of_each_head_may_be_turned() -> None:
    assert read(partial_rotary_factor=0.5).rotary_bytes == read().rotary_bytes // 2
    assert read(rope_parameters={"partial_rotary_factor": 0.25}).rotary_bytes == read().rotary_bytes // 4


@pytest.mark.parametrize("factor", [0, -1, "8", True, None])
def test_a_factor_that_is_none_is_named(factor: object) -> None:
    with pytest.raises(InputError, match=r"config\.json: rope_scaling: field 'factor'"):
        read(rope_scaling={"type": "linear", "factor": factor})


def test_a_large_table_is_a_row_of_its_own_and_small_ones_are_in_the_context() -> None:
    plan = plan_memory(load_model("llama-4-scout"), load_device("h200"), Layout(tensor=4), max_model_len=8192)
    rows = dict(plan.rows())
    assert rows["rotary table"] == 2560 * MIB - ROTARY_IN_CONTEXT_BYTES
    assert sum(rows.values()) == plan.total_bytes
    small = plan_memory(load_model("llama-3.1-8b"), load_device("h200"), max_model_len=8192)
    assert "rotary table" not in dict(small.rows())
    assert small.context_bytes == CONTEXT_BYTES
