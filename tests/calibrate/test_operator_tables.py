"""A deployment's tables are the sum of its operators' times, and each part says how it is known."""

import numpy as np
import pandas as pd
import pytest

from simkit.calibrate.operator_model import OperatorModel, fit_operators
from simkit.calibrate.operator_profile import OperatorProfile
from simkit.calibrate.operator_tables import ProfiledTables, operator_tables
from simkit.models.catalog import known_models, load_model
from simkit.models.device import load_device
from simkit.models.layout import Layout, fitting_tensor_sizes
from simkit.models.operators import Operator
from simkit.models.roofline import roofline_law
from simkit.models.step_law import StepLaw, TableSizes
from simkit.models.steptables import grid_values
from simkit.models.table_shares import KNOWN

from .made_up_profile import decode_ns, gemm_ns, header, made_up_profile, prefill_ns, table

SIZES = TableSizes(max_num_batched_tokens=4096, max_num_seqs=64, max_model_len=8192, kv_tokens=100_000)
MEASURED, INTERPOLATED, EXTRAPOLATED, ASSUMED = range(4)


def nothing(operator: Operator) -> np.ndarray:
    """A law under which all that the profile lacks takes no time."""
    return np.zeros_like(operator.flops)


FREE = StepLaw(operator_ns=nothing, launch_ns=0.0, eager_launch_ns=0.0, host_step_ns=0.0, host_request_ns=0.0)


@pytest.fixture(scope="module")
def model() -> OperatorModel:
    return fit_operators(made_up_profile())


@pytest.fixture(scope="module")
def llama(model: OperatorModel) -> ProfiledTables:
    return operator_tables(model, load_model("llama-3.1-8b"), load_device("h100"), FREE, sizes=SIZES)


def test_linear_layers_are_their_gemms(llama: ProfiledTables) -> None:
    """Llama 3.1 8B: 32 layers of qkv 4096 -> 6144, o 4096 -> 4096, gate and up 4096 -> 28672, down 14336 -> 4096."""
    for tokens in (1, 64, 1024, 4096):
        layer = gemm_ns(tokens, 6144, 4096) + gemm_ns(tokens, 4096, 4096)
        layer = layer + gemm_ns(tokens, 28672, 4096) + gemm_ns(tokens, 4096, 14336)
        assert llama.tables.linear_ns[tokens] == pytest.approx(32 * float(layer), rel=0.04)


def test_a_captured_size_stands_for_all_below_it(llama: ProfiledTables) -> None:
    assert llama.tables.linear_ns[17] == llama.tables.linear_ns[24]
    assert llama.tables.linear_ns[24] != llama.tables.linear_ns[25]


def test_attention_is_all_layers_of_one_launch(llama: ProfiledTables) -> None:
    batch, contexts = grid_values(64), grid_values(64 * 8192)
    for i in (1, 8, 16, 32):
        j = int(np.searchsorted(contexts, batch[i] * 1000))
        truth = 32 * float(decode_ns(batch[i], contexts[j], 32, 8))
        assert llama.tables.decode_ns[i, j] == pytest.approx(truth, rel=0.05)
    chunk, past = grid_values(4096), grid_values(8192)
    for i, j in ((16, 0), (40, 20), (60, 60)):
        truth = 32 * float(prefill_ns(chunk[i], past[j], 32))
        assert llama.tables.prefill_ns[i, j] == pytest.approx(truth, rel=0.06)


def test_tables_have_the_shape_that_the_engine_reads(llama: ProfiledTables) -> None:
    tables = llama.tables
    assert tables.linear_ns.shape == (4097,)
    assert tables.sample_ns.shape == tables.host_ns.shape == (65,)
    assert tables.linear_ns[0] == tables.sample_ns[0] == tables.host_ns[0] == 0.0
    assert tables.decode_ns.shape == (len(grid_values(64)), len(grid_values(100_000)))
    assert tables.prefill_ns.shape == (len(grid_values(4096)), len(grid_values(8192)))
    assert tables.window_tokens == 0


def test_parts_by_how_they_are_known_sum_to_the_whole(model: OperatorModel) -> None:
    device = load_device("h100")
    arch = load_model("llama-3.1-8b")
    built = operator_tables(model, arch, device, roofline_law(arch, device), sizes=SIZES)
    for name in built.known._fields:
        whole, parts = getattr(built.tables, name), getattr(built.known, name)
        assert parts.shape == (len(KNOWN), *whole.shape)
        np.testing.assert_allclose(parts.sum(axis=0), whole, rtol=1e-12)
        assert (parts >= 0).all()
    # norms and activations were not timed here, so a roofline times them
    assert built.known.linear_ns[ASSUMED, 64] > 0
    assert built.known.linear_ns[INTERPOLATED, 64] > built.known.linear_ns[ASSUMED, 64]


def test_a_precision_that_was_not_timed_is_carried_over_and_flagged(model: OperatorModel) -> None:
    arch, device = load_model("llama-3.1-8b"), load_device("h100")
    plain = operator_tables(model, arch, device, FREE, sizes=SIZES)
    packed = operator_tables(model, arch, device, FREE, sizes=SIZES, weights="fp8")
    share = packed.known.linear_ns[EXTRAPOLATED, 8] / packed.tables.linear_ns[8]
    assert share == pytest.approx(1.0)
    # at 8 tokens weights are what takes time, and there are half as many bytes of them
    assert 0.5 < packed.tables.linear_ns[8] / plain.tables.linear_ns[8] < 0.7


def test_experts_are_those_of_the_form_in_which_the_model_was_timed() -> None:
    """DeepSeek-V3 is published in fp8; its own experts were timed with block scales, others' without."""
    tokens = np.array([1, 8, 64, 512, 4096])
    sizes = {"hidden": 7168, "width": 2048, "experts": 256, "top_k": 8, "tensor": 8, "expert": 1}
    own = table("moe", 50e3 + 100.0 * tokens, tokens=tokens, routing="balanced", **sizes, dtype="fp8_block")
    sizes |= {"hidden": 4096, "experts": 16}
    other = table("moe", 9e6 + 100.0 * tokens, tokens=tokens, routing="balanced", **sizes, dtype="fp8")
    model = fit_operators(OperatorProfile(header(), {"moe": pd.concat([own, other], ignore_index=True)}))
    built = operator_tables(model, load_model("deepseek-v3"), load_device("h100"), FREE, Layout(tensor=8), SIZES)
    # 58 layers of experts
    assert built.tables.linear_ns[64] == pytest.approx(58 * (50e3 + 6400.0))
    assert built.known.linear_ns[MEASURED, 64] == pytest.approx(built.tables.linear_ns[64])


def test_host_time_is_that_of_the_profile(llama: ProfiledTables) -> None:
    assert llama.tables.host_ns[64] == pytest.approx(200e3 + 3e3 * 64)


@pytest.mark.parametrize("name", known_models())
def test_every_model_gets_finite_tables(model: OperatorModel, name: str) -> None:
    arch, device = load_model(name), load_device("h100")
    sizes = TableSizes(max_num_batched_tokens=512, max_num_seqs=16, max_model_len=1024, kv_tokens=20_000)
    layout = Layout(tensor=max(size for size in fitting_tensor_sizes(arch) if size <= 8))
    built = operator_tables(model, arch, device, roofline_law(arch, device), layout, sizes)
    for values in built.tables[:-1]:
        assert np.isfinite(values).all()
        assert (np.asarray(values) >= 0).all()
    assert (built.tables.linear_ns[1:] > 0).all()


def test_an_empty_profile_leaves_all_to_the_law() -> None:
    arch, device = load_model("llama-3.1-8b"), load_device("h100")
    built = operator_tables(
        fit_operators(OperatorProfile(header(), {})), arch, device, roofline_law(arch, device), sizes=SIZES
    )
    for parts in built.known:
        assert parts[:ASSUMED].sum() == 0.0
