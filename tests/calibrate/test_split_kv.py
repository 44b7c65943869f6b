"""How a decode kernel cuts its work, against FlashAttention's own examples, a brute force, and a kernel of waves."""

from math import ceil

import numpy as np
import pandas as pd
import pytest

from simkit.calibrate.chip import Chip
from simkit.calibrate.decode_line import FEWEST_ROWS, Batches, fit_decode_line
from simkit.calibrate.decode_model import fit_decode
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.split_kv import programs
from simkit.models.flash_attention import split_count

from .made_up_profile import table

CHIP = Chip(multiprocessors=108, l2_bytes=40.0 * (1 << 20))


def one(value: float) -> np.ndarray:
    return np.array([float(value)])


def by_the_rule(whole: int, tiles: int, sms: int) -> int:
    """FlashAttention's description, word for word: of the numbers of parts that shorten the parts, the smallest that
    gets 85 % of the best occupancy of the last wave; none if 80 % of the chip is busy already.
    """
    if whole >= 0.8 * sms:
        return 1
    efficiency = {}
    for parts in range(1, min(128, sms, tiles) + 1):
        if parts == 1 or ceil(tiles / parts) != ceil(tiles / (parts - 1)):
            waves = whole * parts / sms
            efficiency[parts] = waves / ceil(waves)
    return min(parts for parts, value in efficiency.items() if value >= 0.85 * max(efficiency.values()))


def test_two_parts_are_better_than_three_for_48_programs_on_108_processors() -> None:
    """The example that FlashAttention's source gives: efficiencies of 0.89 and 0.67."""
    assert split_count(one(48), one(3), 108)[0] == 2.0


def test_the_rule_is_flash_attentions() -> None:
    rng = np.random.default_rng(5)
    whole, tiles = rng.integers(1, 140, 400), rng.integers(1, 300, 400)
    found = split_count(whole.astype(float), tiles.astype(float), 132)
    assert found.tolist() == [by_the_rule(int(w), int(t), 132) for w, t in zip(whole, tiles, strict=True)]


def test_a_chip_that_whole_contexts_fill_is_not_split() -> None:
    """22 requests of 4 KV heads are 88 programs, 81 % of 108; 21 are 78 %."""
    assert split_count(one(22 * 4), one(32), 108)[0] == 1.0
    assert split_count(one(21 * 4), one(32), 108)[0] > 1.0


def test_a_program_past_the_last_slot_is_another_wave() -> None:
    """Two programs at once on 108 processors: 54 requests of 4 KV heads fit, 55 do not."""
    found = programs(
        np.array([54.0, 55.0]), np.full(2, 1000.0), np.full(2, 1000.0), np.full(2, 32.0), np.full(2, 4.0), 128, 108
    )
    assert found.waves.tolist() == [1.0, 2.0]
    assert found.tiles.tolist() == [8.0, 8.0]


def test_parts_of_a_wide_page_table_stay_empty() -> None:
    """8 x 4 programs, tables of 4096 tokens (32 tiles): 3 parts of 11 tiles; 1000 tokens fill 8 tiles of one."""
    found = programs(one(8), one(1000), one(4096), one(32), one(4), 128, 108)
    assert (found.parts[0], found.busy_parts[0], found.tiles[0]) == (3.0, 1.0, 8.0)


def waves_ns(batch: np.ndarray, context: np.ndarray) -> np.ndarray:
    """4 KV heads on 108 processors, contexts never split, two programs at once: 2 us + 1 us a tile and wave."""
    return 2e3 + np.ceil(batch * 4 / 216) * np.ceil(context / 128) * 1e3


def even_table(batches: np.ndarray, contexts: np.ndarray) -> pd.DataFrame:
    batch, context = (axis.ravel() for axis in np.meshgrid(batches, contexts, indexing="ij"))
    sizes = {"batch": batch, "context_tokens": batch * context, "longest_tokens": context, "head_dim": 128}
    return table("attention_decode", waves_ns(batch, context), heads=32, kv_heads=4, **sizes)


def test_waves_are_found_and_predicted_between_measurements() -> None:
    batches = np.array([54, 60, 80, 108, 109, 140, 162, 163, 200, 216])
    model = fit_decode(even_table(batches, np.array([128, 512, 1024, 2048, 4096, 8192])), CHIP)
    asked = np.array([100.0, 120.0, 170.0])
    found = model.ns(asked, asked * 3000.0, AttentionShape(32, 4, 128))
    np.testing.assert_allclose(found.ns, waves_ns(asked, np.full(3, 3000.0)), rtol=0.02)


def test_the_end_of_the_cache_is_found() -> None:
    """4 TB/s from a cache that one KV cache after the other fills to 95 %, 1 TB/s from memory once it is larger."""
    batch, context = (axis.ravel() for axis in np.meshgrid(np.arange(1, 65, 3), 2 ** np.arange(7, 15), indexing="ij"))
    kv = batch * context * 4096.0
    past = kv * np.clip((kv / CHIP.l2_bytes - 0.95) / 0.05, 0.0, 1.0)
    asked = Batches(*(np.asarray(x, float) for x in (batch, context, np.full(len(kv), 32), np.full(len(kv), 8))))
    line = fit_decode_line(asked, 3e3 + kv / 4e3 + past * (1 / 1e3 - 1 / 4e3), AttentionShape(1, 1, 128), CHIP)
    assert line.in_cache == 0.95
    assert (line.regime(asked)[:, 0] == np.where(kv > CHIP.l2_bytes, 1.0, line.regime(asked)[:, 0])).all()
    np.testing.assert_allclose(line.ns(asked), 3e3 + kv / 4e3 + past * (1 / 1e3 - 1 / 4e3), rtol=1e-6)


def test_a_kernel_without_waves_is_not_given_any() -> None:
    rng = np.random.default_rng(3)
    batch, context = rng.integers(1, 300, 200).astype(float), rng.integers(1, 20_000, 200).astype(float)
    asked = Batches(batch, context, np.full(200, 32.0), np.full(200, 8.0))
    kv = batch * context * 4096.0
    line = fit_decode_line(asked, 3e3 + kv / 3e3, AttentionShape(1, 1, 128), CHIP)
    assert line.cutting == "unknown"
    np.testing.assert_allclose(line.ns(asked), 3e3 + kv / 3e3, rtol=0.01)


def test_few_measurements_tell_nothing_of_waves() -> None:
    few = even_table(np.array([54, 108, 216]), np.array([128, 1024, 8192]))
    assert len(few) < FEWEST_ROWS
    kind = next(iter(fit_decode(few, CHIP).by_kind.values()))
    assert kind.line.cutting == "unknown"


def test_a_line_never_falls_below_the_shortest_launch() -> None:
    """All was measured in main memory, so the cache costs nothing on the line; a launch takes its time even so."""
    batch = np.full(20, 64.0)
    context = np.linspace(4e3, 3e4, 20)
    asked = Batches(batch, context, np.full(20, 32.0), np.full(20, 8.0))
    ns = batch * context * 4096.0 / 3e3
    line = fit_decode_line(asked, ns, AttentionShape(1, 1, 128), CHIP)
    small = Batches(one(1), one(16), one(32), one(8))
    assert line.ns(small)[0] == pytest.approx(ns.min())
