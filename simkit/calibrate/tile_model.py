"""GEMM times where a table has many sizes of few shapes, through the tiles that the kernels cut products into.

Two prices of every tile (`tile_launch.py`): what it takes, and what the library that chooses among kernels seems to
think it takes, which is not the same: cuBLAS's heuristics often do not take the fastest. The time of a product is the
mean over tiles, weighted by a softmax of the guesses, under a cap that the device's power sets. All prices are found by
descent along the gradient (Adam, Kingma and Ba, 2015) of the mean absolute log error, in a fixed order of random rows:
equal tables give equal prices. Few steps: more of them learn the shapes by heart and predict others worse.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.tile_launch import PER_TILE, SPLITS, TILES, Cuts, Prices, cuts, launches, slopes

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

STEPS, ROWS, PACE = 150, 500, 0.03  # neither 250 steps of 800 rows nor 500 of 2,000 predict better
DECAY, DECAY_OF_SQUARES = 0.9, 0.98
CAP_OVERLAP = np.float32(5.5)  # corner of the power cap
MIDDLE = np.array([512.0, 4096.0, 4096.0])  # tokens, n, k: where slopes of the choice are zero
SEED = 0


@dataclass(frozen=True)
class TileModel:
    """Times of products in tiles, fitted to one device's table."""

    multiprocessors: int
    taken: Prices
    guessed: Prices
    choice: Prices

    def log_ns(self, tokens: F64, n: F64, k: F64) -> F64:
        """Log times, f64[rows], of products of these sizes, f64[rows] each."""
        found = _forward(self, _Rows.of(tokens, n, k, self.multiprocessors))
        return found.log_ns.astype(np.float64)


@dataclass(frozen=True)
class _Rows:
    """Products, as the model reads them."""

    cut: Cuts
    place: F32  # [rows, 3] octaves of tokens, n and k from the middle
    flops: F32  # [rows] log

    @classmethod
    def of(cls, tokens: F64, n: F64, k: F64, multiprocessors: int) -> "_Rows":
        sizes = np.stack([np.asarray(size, np.float64) for size in (tokens, n, k)], axis=1)
        place = 0.1 * np.log2(sizes / MIDDLE)
        flops = np.log(2.0 * sizes.prod(axis=1))
        return cls(cuts(tokens, n, k, multiprocessors), place.astype(np.float32), flops.astype(np.float32))

    def some(self, which: NDArray[np.int64]) -> "_Rows":
        return _Rows(self.cut.rows(which), self.place[which], self.flops[which])


@dataclass(frozen=True)
class _Forward:
    log_ns: F32  # [rows]
    capped: F32  # [rows, tiles, splits] log times under the cap
    below: F32  # share of the cap's corner that is the launch's own time
    weight: F32
    score: F32


def fit_tiles(tokens: F64, n: F64, k: F64, ns: F64, multiprocessors: int) -> TileModel:
    """The model of measured times, f64[rows] each."""
    model = _start(tokens, n, k, ns, multiprocessors)
    rows, log_ns = _Rows.of(tokens, n, k, multiprocessors), np.log(ns).astype(np.float32)
    rng = np.random.default_rng(SEED)
    parts = (model.taken, model.guessed, model.choice)
    means = [{name: np.zeros_like(value) for name, value in part.items()} for part in parts]
    squares = [{name: np.zeros_like(value) for name, value in part.items()} for part in parts]
    for step in range(1, STEPS + 1):
        which = rng.permutation(len(ns))[:ROWS]
        found = _gradient(model, rows.some(which), log_ns[which])
        size = float(np.sqrt(sum(float((value**2).sum()) for part in found for value in part.values())))
        pace = _pace(step) * np.sqrt(1.0 - DECAY_OF_SQUARES**step) / (1.0 - DECAY**step)
        for part, slope, mean, square in zip(parts, found, means, squares, strict=True):
            for name in part:
                by = (slope[name] / max(size, 1.0)).astype(np.float32)
                mean[name] = np.float32(DECAY) * mean[name] + np.float32(1 - DECAY) * by
                square[name] = np.float32(DECAY_OF_SQUARES) * square[name] + np.float32(1 - DECAY_OF_SQUARES) * by**2
                change = np.float32(pace) * mean[name] / (np.sqrt(square[name]) + np.float32(1e-8))
                part[name] = (part[name] - change).astype(np.float32)
    return model


def _pace(step: int) -> float:
    """Rises over the first third of the steps and falls to nothing (Smith's one cycle)."""
    third = STEPS * 0.3
    if step < third:
        return PACE * (0.04 + 0.96 * 0.5 * (1.0 - math.cos(math.pi * step / third)))
    return PACE * 0.5 * (1.0 + math.cos(math.pi * (step - third) / (STEPS - third)))


def _start(tokens: F64, n: F64, k: F64, ns: F64, multiprocessors: int) -> TileModel:
    """Prices to begin from: the best rates of the table."""
    flops = float((2.0 * tokens * n * k / ns).max())
    moved = float((2.0 * (n * k + tokens * k + tokens * n) / ns).max())
    device = {
        "peak": flops / multiprocessors,
        "bandwidth": moved,
        "tile_bandwidth": 3.0 * moved / multiprocessors,
        "cache_bandwidth": 3.0 * moved,
        "launch": 0.75 * float(ns.min()),
        "join": 2000.0,
    }
    prices = {name: np.array(np.log(value), np.float32) for name, value in device.items()}
    prices |= {name: np.full(len(TILES), float(name == "idle"), np.float32) for name in PER_TILE}
    choice = {
        "tile_bias": np.zeros(len(TILES), np.float32),
        "split_bias": np.zeros(len(SPLITS), np.float32),
        "tile_slope": np.zeros((3, len(TILES)), np.float32),
        "split_slope": np.zeros((3, len(SPLITS)), np.float32),
        "blur": np.array(np.log(0.05), np.float32),
    }
    cap = {"cap": np.array(np.log(flops), np.float32), "cap_slope": np.zeros(3, np.float32)}
    return TileModel(multiprocessors, prices | cap, dict(prices), choice)


def _forward(model: TileModel, rows: _Rows) -> _Forward:
    return _weighed(model, rows, launches(model.taken, rows.cut).log_ns, launches(model.guessed, rows.cut).log_ns)


def _weighed(model: TileModel, rows: _Rows, taken: F32, guessed: F32) -> _Forward:
    """The mean of what tiles take under the cap, by how good they are guessed to be."""
    cap = model.taken["cap"] + rows.place @ model.taken["cap_slope"]
    at_cap = (rows.flops - cap)[:, None, None]
    apart = CAP_OVERLAP * (taken - at_cap)
    capped = np.maximum(taken, at_cap) + np.log1p(np.exp(-np.abs(apart))) / CAP_OVERLAP
    below = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * apart))
    tile = model.choice["tile_bias"] + rows.place @ model.choice["tile_slope"]
    split = model.choice["split_bias"] + rows.place @ model.choice["split_slope"]
    score = -(guessed + tile[:, :, None] + split[:, None, :]) / np.exp(model.choice["blur"])
    weight = np.exp(score - score.max(axis=(1, 2), keepdims=True))
    weight /= weight.sum(axis=(1, 2), keepdims=True)
    return _Forward((weight * capped).sum(axis=(1, 2)), capped, below, weight, score)


def _gradient(model: TileModel, rows: _Rows, log_ns: F32) -> tuple[Prices, Prices, Prices]:
    """Derivatives of the mean absolute log error by the prices of what is taken, guessed and chosen."""
    taken, guessed = launches(model.taken, rows.cut), launches(model.guessed, rows.cut)
    found = _weighed(model, rows, taken.log_ns, guessed.log_ns)
    off = (np.sign(found.log_ns - log_ns) / np.float32(len(log_ns)))[:, None, None]
    of_capped = off * found.weight
    by_taken = slopes(model.taken, rows.cut, taken, of_capped * found.below)
    of_cap = -(of_capped * (1 - found.below)).sum(axis=(1, 2))
    by_taken |= {"cap": of_cap.sum(), "cap_slope": of_cap @ rows.place}
    of_score = of_capped * (found.capped - found.log_ns[:, None, None])
    of_guess = -of_score / np.exp(model.choice["blur"])
    of_tile, of_split = of_guess.sum(axis=2), of_guess.sum(axis=1)
    by_choice = {
        "tile_bias": of_tile.sum(axis=0),
        "split_bias": of_split.sum(axis=0),
        "tile_slope": rows.place.T @ of_tile,
        "split_slope": rows.place.T @ of_split,
        "blur": -(of_score * found.score).sum(),
    }
    return by_taken, slopes(model.guessed, rows.cut, guessed, of_guess), by_choice
