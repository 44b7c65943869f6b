"""Loading models by name."""

import json
from pathlib import Path

import pytest

from simkit.errors import InputError
from simkit.models.catalog import known_models, load_model


def test_names_aliases_and_repositories_are_the_same_model_in_any_case() -> None:
    expected = load_model("llama-3.1-8b")
    assert load_model("meta-llama/Llama-3.1-8B-Instruct") is expected
    assert load_model("META-LLAMA/meta-llama-3.1-8b") is expected


def test_unknown_model_suggests_the_nearest_and_the_file() -> None:
    with pytest.raises(InputError, match=r"did you mean 'llama-3\.1-8b'.*config\.json"):
        load_model("lama-3.1-8b")


def test_config_file_is_loaded_by_path(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 4, "vocab_size": 9})
    )
    for given in (str(path), str(tmp_path)):
        assert load_model(given).hidden == 8


def test_missing_config_file_is_an_input_error() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_model("no/such/config.json")


def test_catalog_is_large_enough_and_sorted() -> None:
    assert len(known_models()) >= 30
    assert known_models() == sorted(known_models())
