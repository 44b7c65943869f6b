"""Tiles against a device made of them, against closed forms, and derivatives against differences."""

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from simkit.calibrate import tile_model
from simkit.calibrate.gemm_model import fit_gemm
from simkit.calibrate.provenance import Tag
from simkit.calibrate.tile_launch import SPLITS, TILES, Cuts, cuts, launches
from simkit.calibrate.tile_model import fit_tiles

from .made_up_profile import table

F64 = NDArray[np.float64]
SMS = 108
# an octave apart and further, as in Vidur's tables
SHAPES = [(n, k) for n in (768, 1536, 3072, 5120, 8192, 14336) for k in (1024, 4096, 8192)]
HELD = (5120, 4096)


def stairs_ns(tokens: F64, n: F64, k: F64) -> F64:
    """A device that has tiles of 128 x 128 and of 128 x 256, takes the faster, and 3 us for a launch."""
    best = np.full(np.shape(tokens), np.inf)
    for wide, flops_per_ns in ((128, 1500.0), (256, 1800.0)):
        waves = np.ceil(np.ceil(tokens / 128) * np.ceil(n / wide) / SMS)
        best = np.minimum(best, waves * (2.0 * 128 * wide * k / flops_per_ns + 800.0))
    memory: F64 = 2.0 * (n * k + tokens * k + tokens * n) / 1500.0
    return 3000.0 + np.maximum(best, memory)


class Products(NamedTuple):
    tokens: F64
    n: F64
    k: F64

    def ns(self) -> F64:
        return stairs_ns(self.tokens, self.n, self.k)


def products(shapes: list[tuple[int, int]], sizes: int = 110) -> Products:
    tokens = np.unique(np.concatenate([[1, 2, 4], np.arange(1, sizes - 2) * 32])).astype(np.float64)
    each = [(t, n, k) for n, k in shapes for t in tokens]
    return Products(*(np.array(column, np.float64) for column in zip(*each, strict=True)))


def test_a_tile_takes_what_its_waves_take() -> None:
    """Nothing but computing at one FLOP a nanosecond and tile, waves rounded up: the closed form."""
    prices = {name: np.full(len(TILES), -30.0, np.float32) for name in ("rate", "start", "idle", "load", "cache")}
    prices["rate"][:] = 0.0
    prices["idle"][:] = 30.0
    prices["load"][:] = prices["cache"][:] = 0.0
    device = {"peak": 0.0, "bandwidth": 30.0, "tile_bandwidth": 30.0, "cache_bandwidth": 30.0, "launch": 0.0, "join": 0}
    prices |= {name: np.array(value, np.float32) for name, value in device.items()}
    tokens, n = np.array([128.0, 129.0, 256.0]), np.full(3, 128.0 * SMS)
    found = launches(prices, cuts(tokens, n, np.full(3, 4096.0), SMS)).log_ns
    one = 2.0 * 128 * 128 * 4096
    place = TILES.index((128, 128)), SPLITS.index(1)
    np.testing.assert_allclose(np.exp(found[:, *place]), one * np.array([1.0, 2.0, 2.0]), rtol=1e-4)
    halves = np.exp(found[0, place[0], SPLITS.index(2)])
    assert halves == pytest.approx(one, rel=1e-4)  # twice the tiles of half the depth: two waves


def test_derivatives_are_those_of_differences() -> None:
    some = products([(1536, 4096), (8192, 1024)], 40)
    model = tile_model._start(*some, some.ns(), SMS)
    parts = (model.taken, model.guessed, model.choice)
    for prices in parts:  # in double precision differences may be small
        prices |= {name: value.astype(np.float64) for name, value in prices.items()}
    as_read = tile_model._Rows.of(*some, SMS)
    cut = Cuts(*(part.astype(np.float64) for part in as_read.cut))
    rows = tile_model._Rows(cut, as_read.place.astype(np.float64), as_read.flops.astype(np.float64))
    # far from the times themselves, so that no error changes its sign
    log_ns = np.log(some.ns()) - 3.0
    found = tile_model._gradient(model, rows, log_ns)

    def off() -> float:
        return float(np.abs(tile_model._forward(model, rows).log_ns - log_ns).mean())

    step = 1e-5
    for prices, slopes in zip(parts, found, strict=True):
        assert slopes.keys() == prices.keys()
        for name, value in prices.items():
            shift = np.random.default_rng(1).normal(size=value.shape)
            both = []
            for sign in (1.0, -1.0):
                prices[name] = value + sign * step * shift
                both.append(off())
            prices[name] = value
            along = float((np.asarray(slopes[name]) * shift).sum())
            assert (both[0] - both[1]) / (2 * step) == pytest.approx(along, rel=1e-4, abs=1e-8), name


def test_shapes_an_octave_away_are_found_by_their_tiles() -> None:
    """The stairs of the shape left out stand elsewhere than its neighbours'; planes alone cannot know."""
    seen = products([shape for shape in SHAPES if shape != HELD])
    asked = products([HELD])
    rows = table("gemm", seen.ns(), tokens=seen.tokens, n=seen.n, k=seen.k)
    model = fit_gemm(rows, SMS)
    assert model.by_dtype["bf16"].tiles is not None
    found = model.ns(asked.tokens, *HELD)
    without = fit_gemm(rows[rows["tokens"] % 64 != 32], SMS)  # too few sizes: planes
    assert without.by_dtype["bf16"].tiles is None
    planes = without.ns(asked.tokens, *HELD)
    off, off_planes = (float(np.abs(times.ns / asked.ns() - 1.0).mean()) for times in (found, planes))
    assert off < 0.05
    assert off < 0.7 * off_planes
    assert (found.tag == Tag.INTERPOLATED).all()
    known = model.ns(seen.tokens[:5], int(seen.n[0]), int(seen.k[0]))
    np.testing.assert_allclose(known.ns, seen.ns()[:5], rtol=1e-9)
    assert (known.tag == Tag.MEASURED).all()


def test_equal_tables_give_equal_prices() -> None:
    some = products(SHAPES[:3], 50)
    first, second = (fit_tiles(*some, some.ns(), SMS) for _ in range(2))
    np.testing.assert_array_equal(first.log_ns(*some), second.log_ns(*some))
