"""The laws of MoE layers, against the tables that they are distilled from and against what is known of the kernels."""

from itertools import pairwise

import numpy as np
import pytest

from simkit.calibrate.aic_source import systems_folder
from simkit.errors import InputError
from simkit.models.architecture import Architecture
from simkit.models.calibrated import GROUPED_PRODUCTS, INSIDE_GROUPED, operator_ns
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.engine_law import engine_law
from simkit.models.kernel_laws import laws_of, measured_devices
from simkit.models.layout import Layout
from simkit.models.operators import linear_operators
from simkit.models.precision import Precision

FOLDERS = {"h100-sxm": "h100_sxm", "h200": "h200_sxm"}


def layer_ms(arch: Architecture, device: str, tensor: int, tokens: int, weights: Precision | None = None) -> float:
    """What the routed experts of one layer take."""
    known, layout = load_device(device), Layout(tensor=tensor)
    found = laws_of(known)
    assert found is not None
    total, layers = 0.0, 0
    for operator in linear_operators(arch, layout, np.array([float(tokens)]), weights, "bf16"):
        if operator.family == "grouped_gemm" or operator.name in INSIDE_GROUPED:
            total += float(operator_ns(operator, arch, known, layout, weights, found[0], engine_law())[0])
        layers += operator.launches if operator.family == "grouped_gemm" else 0
    return total / (layers / GROUPED_PRODUCTS) / 1e6


@pytest.mark.parametrize("device", sorted(FOLDERS))
@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("tokens", [8192, 16384])
def test_long_prompts_through_slices_of_experts_are_the_tables(device: str, tensor: int, tokens: int) -> None:
    """Qwen3-235B-A22B in FP8: 128 experts, 8 a token, 4096 x 1536, whole, in halves and in fourths."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    try:
        folder = systems_folder() / "data" / FOLDERS[device] / "moe/vllm/0.24.0"
    except InputError as error:
        pytest.skip(str(error))
    if not folder.is_dir():
        pytest.skip(f"this version of the tables has no {folder.name}")
    table = pandas.read_parquet(folder / "moe_perf.parquet")
    rows = table[
        (table.moe_dtype == "fp8_block") & (table.num_experts == 128) & (table.hidden_size == 4096)
        & (table.inter_size == 1536) & (table.topk == 8) & (table.moe_tp_size == tensor) & (table.moe_ep_size == 1)
        & (table.num_tokens == tokens) & (table.distribution == "balanced")
        & table.kernel_source.str.contains("triton")
    ]  # fmt: skip
    assert len(rows) == 1
    arch = load_model("qwen3-235b-a22b")
    assert layer_ms(arch, device, tensor, tokens, "fp8") == pytest.approx(float(rows.latency.iloc[0]), rel=0.10)


def test_half_a_slice_is_more_than_half_the_time() -> None:
    """Each token is copied to its experts and summed again, whatever the width of their slices."""
    arch = load_model("deepseek-v3")
    times = [layer_ms(arch, "h200", tensor, 8192) for tensor in (1, 2, 4, 8)]
    for wide, narrow in pairwise(times):
        assert 0.52 * wide < narrow < wide
    assert times[3] > 1.5 * times[0] / 8


def test_integer_experts_take_marlin_which_is_slow_at_long_prompts_and_not_at_short_ones() -> None:
    """Marlin has no `wgmma`: on Hopper it reaches half of the peak at most; what is bound by memory is no slower."""
    arch = load_model("gpt-oss-120b")
    for device in ("h100-sxm", "h200"):
        assert layer_ms(arch, device, 1, 8192, "int4") > 1.4 * layer_ms(arch, device, 1, 8192)
        assert layer_ms(arch, device, 1, 16, "int4") == pytest.approx(layer_ms(arch, device, 1, 16), rel=0.25)
        found = laws_of(load_device(device))
        assert found is not None
        assert found[0].grouped_gemm_marlin.compute < 0.5 < found[0].grouped_gemm_4bit.compute


def test_every_measured_device_has_all_laws_of_experts() -> None:
    for name in measured_devices():
        found = laws_of(load_device(name))
        assert found is not None
        laws = found[0]
        for law in (laws.grouped_gemm, laws.grouped_gemm_8bit, laws.grouped_gemm_4bit, laws.grouped_gemm_marlin):
            assert law.error < 0.13
            assert law.copies <= 1.05
