"""The testbed's decoder has the architecture's size, or says why it cannot."""

import importlib
import sys

import pytest

from simkit.errors import InputError
from simkit.models.catalog import load_model
from simkit.testbed.shape import DecoderShape, shape_of


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-2-7b"])
def test_parameters_are_the_published_ones(model: str) -> None:
    published = {"llama-3.1-8b": 8_030_261_248, "llama-2-7b": 6_738_415_616}
    assert shape_of(load_model(model)).parameters == published[model]


def test_layers_are_cut_for_small_machines() -> None:
    small = shape_of(load_model("llama-3.1-8b"), layers=2)
    assert (small.layers, small.hidden, small.kv_heads, small.group) == (2, 4096, 8, 4)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("mixtral-8x7b", "experts"),
        ("deepseek-v3", "layers of several kinds"),
        ("qwen2.5-7b", "biases, norms, sinks or a gate"),
        ("gemma-2-9b", "layers of several kinds"),
        ("gpt2", "LayerNorm"),
    ],
)
def test_what_the_decoder_is_not_is_named(model: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        shape_of(load_model(model))


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"layers=33: llama-3\.1-8b has 1 to 32"):
        shape_of(load_model("llama-3.1-8b"), layers=33)
    with pytest.raises(InputError, match="kv_heads=3: must divide heads=4"):
        DecoderShape(hidden=8, layers=1, heads=4, kv_heads=3, head_dim=2, ffn=8, vocab=8)
    with pytest.raises(InputError, match="head_dim=3"):
        DecoderShape(hidden=8, layers=1, heads=4, kv_heads=2, head_dim=3, ffn=8, vocab=8)


def test_missing_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "simkit.testbed.torch_import", raising=False)
    with pytest.raises(InputError, match=r"torch is not installed; pip install 'simkit-serving\[gpu\]'"):
        importlib.import_module("simkit.testbed.torch_import")
