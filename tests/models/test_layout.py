"""Which layouts are possible, and what each GPU holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simkit.errors import InputError
from simkit.models.catalog import known_models, load_model
from simkit.models.layout import (
    Layout,
    check_layout,
    fitting_tensor_sizes,
    kv_bytes_per_token_per_gpu,
    stage_layers,
)
from simkit.models.sharding import weight_bytes_per_stage


@pytest.mark.parametrize(
    ("name", "layout", "words"),
    [
        ("yi-34b", Layout(tensor=16), "56 attention heads.*1, 2, 4, 8"),
        ("phi-4", Layout(tensor=4), "10 KV heads"),
        ("llama-3.1-8b", Layout(tensor=3), "32 attention heads"),
        ("llama-3.1-8b", Layout(pipeline=33), "32 layers"),
        ("llama-3.1-8b", Layout(tensor=2, expert=2), "no experts"),
        ("mixtral-8x7b", Layout(tensor=4, expert=2), "expert 1 or expert 4"),
        ("mixtral-8x7b", Layout(tensor=16, expert=16), "8 experts"),
        ("mixtral-8x7b", Layout(tensor=2, data=2, expert=2), "use expert 4"),
        ("llama-3.1-8b", Layout(data=2), "no experts"),
        ("mixtral-8x7b", Layout(tensor=2, expert_skew=1.5), "set expert"),
        ("mixtral-8x7b", Layout(tensor=2, expert=2, expert_skew=1.5, expert_zipf=0.8), "give one of them"),
    ],
)
def test_impossible_layout_says_what_would_fit(name: str, layout: Layout, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_layout(load_model(name), layout)


@pytest.mark.parametrize("field", ["tensors", "replicas"])
def test_unknown_layout_field_is_refused(field: str) -> None:
    with pytest.raises(ValidationError):
        Layout.model_validate({field: 2})


def test_usual_deployments_are_possible() -> None:
    for name, tensor in [("llama-3.1-405b", 8), ("deepseek-v3", 16), ("qwen3-235b-a22b", 8), ("llama-3.1-70b", 4)]:
        check_layout(load_model(name), Layout(tensor=tensor))


def test_kv_is_cut_then_copied() -> None:
    arch = load_model("llama-3.1-8b")  # 8 KV heads, 131,072 bytes
    halves = [kv_bytes_per_token_per_gpu(arch, Layout(tensor=tensor)) for tensor in (1, 2, 8, 16, 32)]
    assert halves == [131072, 65536, 16384, 16384, 16384]


def test_latent_kv_is_on_every_gpu_of_the_tensor_group() -> None:
    assert kv_bytes_per_token_per_gpu(load_model("deepseek-v3"), Layout(tensor=8)) == 70_272


def test_extra_layers_go_to_the_stages_before_the_last() -> None:
    # vLLM get_pp_indices: 126 layers over 4 stages are 31, 32, 32, 31
    stages = stage_layers(load_model("llama-3.1-405b"), 4)
    assert [len(stage) for stage in stages] == [31, 32, 32, 31]


@given(name=st.sampled_from(known_models()), pipeline=st.integers(1, 12), data=st.data())
def test_shards_hold_at_least_the_model(name: str, pipeline: int, data: st.DataObject) -> None:
    arch = load_model(name)
    tensor = data.draw(st.sampled_from(fitting_tensor_sizes(arch)))
    layout = Layout(tensor=tensor, pipeline=pipeline)
    stages = weight_bytes_per_stage(arch, layout)
    assert len(stages) == pipeline
    assert sum(len(stage) for stage in stage_layers(arch, pipeline)) == len(arch.layers)
    held, whole = tensor * sum(stages), arch.weight_bytes()
    assert held >= whole * (1 - 1e-9)
    if tensor == 1 and not (arch.tied_embeddings and pipeline > 1):
        assert held == pytest.approx(whole, rel=1e-9)
    if tensor == 2:  # copies are small: norms, routers, MLA's down projections, a tied embedding
        assert held < 1.5 * whole
