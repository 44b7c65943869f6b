"""The price of ragged batches, against schedules worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from simkit.calibrate.chip import Chip
from simkit.calibrate.decode_model import fit_decode
from simkit.calibrate.makespan import Raggedness, fit_raggedness, skew
from simkit.calibrate.operator_sizes import AttentionShape, write_contexts
from simkit.calibrate.provenance import Tag

from .made_up_profile import decode_ns, decode_table, table

WHOLE = Raggedness(start_tiles=0.0, slots=1, split_tokens=0, fitted_on=0)


def test_an_even_batch_costs_nothing_more() -> None:
    assert skew(np.full(50, 4096), 8, 132, WHOLE) == 1.0


def test_one_long_request_alone_bounds_the_batch() -> None:
    """4 processors, contexts 1, 1, 1, 5 tiles of 32: the long one ends at 5; even ones of 2 tiles end at 2."""
    contexts = np.array([32, 32, 32, 160])
    assert skew(contexts, 1, 4, WHOLE) == pytest.approx(2.5)


def test_programs_queue_for_processors_in_their_order() -> None:
    """2 processors, tiles 3, 1, 1, 3 in order: one runs 3 then nothing .. ends at 3; the other 1, 1, 3 ends at 5.

    Even: 4 programs of 2 tiles on 2 processors end at 4.
    """
    contexts = np.array([96, 32, 32, 96])
    assert skew(contexts, 1, 2, WHOLE) == pytest.approx(5 / 4)


def test_programs_left_over_run_faster() -> None:
    """2 processors, 1, 1, 1, 5 tiles in order: at 1 the last two start, at 2 the long one has 4 tiles left.

    It runs them alone at twice the speed, to 4. Even ones of 2 tiles end at 4.
    """
    contexts = np.array([32, 32, 32, 160])
    assert skew(contexts, 1, 2, WHOLE) == pytest.approx(6 / 4)
    assert skew(contexts, 1, 2, WHOLE._replace(alone=2.0)) == pytest.approx(1.0)


def test_few_programs_are_bound_by_their_own_speed() -> None:
    """8 processors, contexts 2 and 6 tiles; alone at most 3 times as fast, and 2 on 8 could be 4 times: 6 / 3.

    Even ones of 4 tiles end at 4 / 3.
    """
    assert skew(np.array([64, 192]), 1, 8, WHOLE._replace(alone=3.0)) == pytest.approx(6 / 4)


def test_splitting_evens_a_batch_out() -> None:
    contexts = np.array([512] * 15 + [65536])
    whole = skew(contexts, 1, 64, WHOLE)
    split = skew(contexts, 1, 64, Raggedness(0.0, 1, 256, 0))
    assert whole > 10.0
    assert split < 1.5


def test_the_cutting_of_a_kernel_is_found_again() -> None:
    truth = Raggedness(start_tiles=4.0, slots=2, split_tokens=512, fitted_on=0)
    rng = np.random.default_rng(1)
    batches = [np.maximum(16, rng.lognormal(6, 1.5, int(size)).astype(np.int64)) for size in rng.integers(4, 60, 25)]
    heads = np.full(25, 8)
    factors = np.array([skew(batch, 8, 132, truth) for batch in batches])
    found = fit_raggedness(batches, heads, factors, 132)
    again = np.array([skew(batch, 8, 132, found) for batch in batches])
    np.testing.assert_allclose(again, factors, rtol=0.02)
    assert found.fitted_on == 25


def test_ragged_rows_of_a_profile_are_fitted_and_given_back() -> None:
    truth = Raggedness(start_tiles=1.0, slots=1, split_tokens=0, fitted_on=0)
    rng = np.random.default_rng(2)
    rows = [decode_table()]
    batches = [np.sort(np.maximum(16, rng.lognormal(7, 1.2, 24).astype(np.int64))) for _ in range(12)]
    for batch in batches:
        ns = float(decode_ns(24, batch.sum(), 32, 8)) * skew(batch, 8, 132, truth)
        sizes = {"batch": 24, "context_tokens": int(batch.sum()), "longest_tokens": int(batch.max())}
        text = write_contexts(batch)
        rows.append(table("attention_decode", [ns], heads=32, kv_heads=8, head_dim=128, contexts=text, **sizes))
    model = fit_decode(pd.concat(rows, ignore_index=True), Chip())
    for batch in batches:
        found = model.ragged_ns(batch, AttentionShape(32, 8, 128))
        truth_ns = float(decode_ns(24, batch.sum(), 32, 8)) * skew(batch, 8, 132, truth)
        assert float(found.ns) == pytest.approx(truth_ns, rel=0.05)
        assert found.tag == Tag.INTERPOLATED


def test_an_uneven_batch_reads_what_its_windows_leave() -> None:
    """255 requests of 64 tokens and one of 262,144 behind a window of 4,096: 80 tokens each on the mean, not 1,088."""
    frame = decode_table()
    each = frame["context_tokens"] // frame["batch"]
    ns = decode_ns(frame["batch"], frame["batch"] * np.minimum(each, 4096), frame["heads"], frame["kv_heads"])
    model = fit_decode(frame.assign(window=4096, median_ns=ns), Chip())
    shape = AttentionShape(32, 8, 128, window=4096)
    contexts = np.array([64] * 255 + [262_144], dtype=np.int64)
    found = model.even_ns(contexts, shape)
    assert float(found.ns) == pytest.approx(float(decode_ns(256, 255 * 64 + 4096, 32, 8)), rel=0.05)
    alike = np.full(16, 16_384, dtype=np.int64)
    assert float(model.ragged_ns(alike, shape).ns) == pytest.approx(float(decode_ns(16, 16 * 4096, 32, 8)), rel=1e-6)
