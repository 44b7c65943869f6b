"""The memory plan against the KV blocks that real vLLM reported, and its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkit.errors import InputError
from simkit.models.architecture import Architecture
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.huggingface import read_config
from simkit.models.layout import Layout
from simkit.models.memory import plan_memory

SCOUT = "RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic"


def measured_runs(shared: Path) -> list[dict[str, object]]:
    runs = json.loads((shared / "fidelity" / "vllm_gpu_runs.json").read_text())
    return [run for run in runs if run.get("kv_blocks")]


def architecture(shared: Path, model: str) -> Architecture:
    if model == SCOUT:
        return read_config(shared / "hf_configs" / "llama-4-scout-17b-16e-instruct-fp8-dynamic.json")
    return load_model(model)


def test_kv_blocks_match_real_vllm(shared: Path) -> None:
    errors: dict[str, float] = {}
    for run in measured_runs(shared):
        plan = plan_memory(
            architecture(shared, str(run["model"])),
            load_device(str(run["hardware"])),
            Layout(tensor=int(str(run["tensor_parallel"]))),
            gpu_memory_utilization=float(str(run["gpu_memory_utilization"])),
            max_num_batched_tokens=int(str(run["max_num_batched_tokens"])),
            max_num_seqs=128,
            max_model_len=4096,
            graphs_counted=False,  # v0.15
        )
        errors[str(run["id"])] = plan.num_blocks / int(str(run["kv_blocks"])) - 1
        print(f"{run['id']}: planned {plan.num_blocks}, measured {run['kv_blocks']}: {errors[str(run['id'])]:+.2%}")
    assert len(errors) == 6
    assert np.median(np.abs(list(errors.values()))) < 0.005
    text_only = [abs(error) for run, error in errors.items() if "scout" not in run]
    assert max(text_only) < 0.01
    # 1.8 GiB of Scout's memory is not explained (docs/models.md): an overestimate, bounded here
    assert all(0 < error < 0.16 for run, error in errors.items() if "scout" in run)


def test_rows_sum_to_the_device() -> None:
    device = load_device("h100")
    for counted in (True, False):
        plan = plan_memory(load_model("llama-3.1-8b"), device, max_model_len=8192, graphs_counted=counted)
        assert sum(size for _, size in plan.rows()) == device.memory_bytes
        assert all(size >= 0 for _, size in plan.rows())
        assert plan.kv_tokens == 16 * plan.num_blocks
        assert plan.max_concurrency == pytest.approx(plan.num_blocks / 512)


@pytest.mark.parametrize(
    ("model", "device", "layout", "words"),
    [
        ("llama-3.1-70b", "h100", Layout(), ["does not fit", "tensor 4"]),
        ("llama-3.1-70b", "h100", Layout(tensor=2), ["max_model_len", "tensor 4", "weights fp8", "device h200"]),
        ("llama-3.1-8b", "l4", Layout(), ["less than one request of 131072", "tensor 2"]),
        ("deepseek-v3", "h100", Layout(tensor=8), ["does not fit", "tensor 16", "device h200"]),
    ],
)
def test_what_does_not_fit_says_what_would(model: str, device: str, layout: Layout, words: list[str]) -> None:
    arch = load_model(model)
    with pytest.raises(InputError) as caught:
        plan_memory(arch, load_device(device), layout)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_advice_of_a_refusal_works() -> None:
    arch, h100 = load_model("llama-3.1-70b"), load_device("h100")
    assert plan_memory(arch, h100, Layout(tensor=4)).kv_tokens >= 131072
    assert plan_memory(arch, h100, Layout(tensor=2), weights="fp8").kv_tokens >= 131072
    assert plan_memory(arch, load_device("h200"), Layout(tensor=2)).kv_tokens >= 131072


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"block_size": -16}, "block_size"),
        ({"max_model_len": 200_000}, "131072"),
        ({"max_model_len": -1}, "max_model_len"),
        ({"max_model_len": 0}, "max_model_len"),
    ],
)
def test_bad_argument_is_named(arguments: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=name):
        plan_memory(load_model("llama-3.1-8b"), load_device("h100"), **arguments)  # type: ignore[arg-type]


@given(
    utilization=st.floats(0.5, 0.98),
    tokens=st.integers(256, 16384),
    seqs=st.integers(1, 512),
    kv=st.sampled_from(["bf16", "fp8"]),
)
def test_more_memory_and_smaller_kv_never_hold_fewer_tokens(
    utilization: float, tokens: int, seqs: int, kv: str
) -> None:
    def tokens_held(share: float, precision: str) -> int:
        return plan_memory(
            load_model("llama-3.1-8b"),
            load_device("h100"),
            kv="fp8" if precision == "fp8" else "bf16",
            gpu_memory_utilization=share,
            max_num_batched_tokens=tokens,
            max_num_seqs=seqs,
            max_model_len=4096,
        ).kv_tokens

    held = tokens_held(utilization, kv)
    assert tokens_held(utilization + 0.02, kv) >= held
    assert tokens_held(utilization, "fp8") >= held


def test_pipeline_takes_the_stage_with_fewest_blocks() -> None:
    arch, device = load_model("llama-3.1-70b"), load_device("h100")
    four = plan_memory(arch, device, Layout(pipeline=4), max_model_len=8192)
    assert four.block_bytes == 16 * 327_680 // 4
    assert four.weight_bytes > arch.weight_bytes() / 4  # an end stage, with embedding or lm_head


def test_eager_needs_no_graph_memory() -> None:
    arch, device = load_model("llama-3.1-8b"), load_device("h100")
    eager = plan_memory(arch, device, max_model_len=8192, enforce_eager=True)
    assert eager.graph_bytes == 0
    assert eager.num_blocks > plan_memory(arch, device, max_model_len=8192).num_blocks
