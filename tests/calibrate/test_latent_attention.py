"""Latent attention (MLA), fitted and put into a deployment's tables, against the closed forms it was made from."""

import numpy as np
import pytest

from simkit.calibrate.operator_errors import errors, held_out_predictions
from simkit.calibrate.operator_model import OperatorModel, fit_operators
from simkit.calibrate.operator_profile import OperatorProfile
from simkit.calibrate.operator_sizes import LatentShape
from simkit.calibrate.operator_tables import operator_tables
from simkit.calibrate.provenance import Tag
from simkit.models.architecture import LatentAttention
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.layout import Layout
from simkit.models.roofline import roofline_law
from simkit.models.step_law import TableSizes
from simkit.models.steptables import grid_values

from .made_up_profile import BATCHES, CHUNKS, CONTEXTS, header, table, work_ns

HEADS = (8, 16, 32, 64, 128)
FEW = HEADS[:4]  # so many heads read for longer than they compute, on this device


def decode_ns(batch: object, context_tokens: object, heads: object) -> np.ndarray:
    """DeepSeek-V3's: 576 values a token read once at 16 bits, every head against them: 2 x (576 + 512) FLOPs a pair.

    Queries of 576 and outputs of 512 values a head are moved too.
    """
    total, queries = np.asarray(context_tokens, float), np.asarray(batch, float) * np.asarray(heads)
    return work_ns(2.0 * 1088 * np.asarray(heads) * total, 2.0 * 576 * total + 2.0 * 1088 * queries)


def prefill_ns(chunk: object, past: object, heads: object) -> np.ndarray:
    """Products of 192 and of 128 values a pair and head."""
    c, p = np.asarray(chunk, float), np.asarray(past, float)
    return work_ns(2.0 * 320 * np.asarray(heads) * (c * p + c * (c + 1) / 2), 0.0)


@pytest.fixture(scope="module")
def profile() -> OperatorProfile:
    heads, batch, each = (axis.ravel() for axis in np.meshgrid(FEW, BATCHES, CONTEXTS, indexing="ij"))
    sizes = {"batch": batch, "context_tokens": batch * each, "longest_tokens": each, "kv_rank": 512, "rope_dim": 64}
    decode = table("mla_decode", decode_ns(batch, batch * each, heads), heads=heads, **sizes)
    heads, chunk = (axis.ravel() for axis in np.meshgrid(HEADS, CHUNKS, indexing="ij"))
    sizes = {"chunk": chunk, "past": 0, "query_dim": 192, "value_dim": 128, "batch": 1}
    prefill = table("mla_prefill", prefill_ns(chunk, 0, heads), heads=heads, **sizes)
    return OperatorProfile(header(), {"mla_decode": decode, "mla_prefill": prefill})


@pytest.fixture(scope="module")
def model(profile: OperatorProfile) -> OperatorModel:
    return fit_operators(profile)


def test_a_size_that_was_timed_is_given_back(model: OperatorModel) -> None:
    found = model.latent_decode_ns(np.array([64.0]), np.array([64.0 * 4096]), LatentShape(16))
    assert found is not None
    np.testing.assert_allclose(found.ns, decode_ns(64, 64 * 4096, 16), rtol=1e-9)
    assert found.tag[0] == Tag.MEASURED
    chunk = model.latent_prefill_ns(np.array([1024.0]), np.array([0.0]), LatentShape(128))
    assert chunk is not None
    np.testing.assert_allclose(chunk.ns, prefill_ns(1024, 0, 128), rtol=1e-9)


def test_sizes_between_are_interpolated(model: OperatorModel) -> None:
    batch, each = np.array([3.0, 48.0, 200.0]), np.array([700.0, 700.0, 3000.0])
    found = model.latent_decode_ns(batch, batch * each, LatentShape(16))
    assert found is not None
    np.testing.assert_allclose(found.ns, decode_ns(batch, batch * each, 16), rtol=0.05)
    assert (found.tag == Tag.INTERPOLATED).all()


def test_a_past_that_was_not_timed_is_extrapolated(model: OperatorModel) -> None:
    found = model.latent_prefill_ns(np.array([2048.0]), np.array([8192.0]), LatentShape(128))
    assert found is not None
    assert found.tag[0] == Tag.EXTRAPOLATED
    # nine times the pairs; a row's fixed cost, which the model knows and this device has not, is paid once
    alone = model.latent_prefill_ns(np.array([2048.0]), np.array([0.0]), LatentShape(128))
    assert alone is not None
    assert 6.0 < found.ns[0] / alone.ns[0] < 9.0


def test_errors_are_told_of_regions_held_out(profile: OperatorProfile) -> None:
    found = {(error.table, error.region) for one in held_out_predictions(profile) for error in errors(one)}
    assert found >= {("mla_decode", "cells"), ("mla_decode", "heads"), ("mla_prefill", "heads")}


def test_deepseeks_attention_is_the_profiles(model: OperatorModel) -> None:
    """61 layers, 128 heads over 8 GPUs: 16 each."""
    arch, device = load_model("deepseek-v3"), load_device("h100")
    attention = arch.layers[0].attention
    assert isinstance(attention, LatentAttention)
    assert (attention.kv_rank, attention.rope_dim, attention.query_dim, attention.value_dim) == (512, 64, 192, 128)
    sizes = TableSizes(max_num_batched_tokens=4096, max_num_seqs=64, max_model_len=8192, kv_tokens=200_000)
    built = operator_tables(model, arch, device, roofline_law(arch, device), Layout(tensor=8), sizes)
    batch, contexts = grid_values(64), grid_values(200_000)
    i, j = int(np.searchsorted(batch, 32)), int(np.searchsorted(contexts, 32 * 2000))
    truth = 61 * float(decode_ns(batch[i], contexts[j], 16))
    assert built.tables.decode_ns[i, j] == pytest.approx(truth, rel=0.05)
    assert built.known.decode_ns[Tag.ASSUMED].sum() == 0.0
    chunk = int(np.searchsorted(grid_values(4096), 1024))
    truth = 61 * float(prefill_ns(grid_values(4096)[chunk], 0, 16))
    # latents of no past need not be spelt out, and a chunk costs nothing beside its attention by this law
    assert built.tables.prefill_ns[chunk, 0] == pytest.approx(truth, rel=0.05)
    past = len(grid_values(8192)) - 10
    assert built.known.prefill_ns[Tag.ASSUMED, chunk, past] > 0.0
