"""What a GEMM would take if its kernel cut it into tiles of one size, for each of several sizes at once.

    time = start + compute, memory and cache, which overlap + joining the parts of a split sum
    compute = waves of tiles over the multiprocessors x (a tile's FLOPs or bytes, the slower + its own start)

Waves round up, in part: a multiprocessor that is done early helps as much as the kernel lets it. Each size of tile has
its own rate, start, bandwidths and rounding; these are prices that a table is fitted to (`tile_model.py`), so that
derivatives by each price are here too.

The form is that of NeuSight (Lee et al., 2025) and of CUTLASS's documentation: tiles, waves, split sums.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Prices = dict[str, F32]

# tokens x features; what cuBLAS and CUTLASS have for 16 bits
TILES = (
    (32, 128), (64, 64), (64, 128), (64, 256), (128, 64), (128, 128),
    (128, 192), (128, 256), (192, 128), (256, 64), (256, 128),
)  # fmt: skip
SPLITS = (1, 2, 4)  # of the sum over k
DEPTH = 64  # of a tile's step along k
OVERLAP = np.float32(4.0)  # x and y that overlap take (x^4 + y^4)^(1/4); left to a fit it came to 3.3 to 5.8
TILE_START_NS = 500.0  # times the price of a tile's start
PER_TILE = ("rate", "start", "idle", "load", "cache")  # prices of a size of tile; the others are the device's


class Cuts(NamedTuple):
    """Products cut by each size of tile and split: f32[rows, tiles, splits]."""

    flops: F32  # log, of a tile
    loads: F32  # log bytes that a tile loads
    lines: F32  # log bytes that all of them load
    waves: F32  # rounded up
    share: F32  # not rounded, at least one
    joined: F32  # bytes of partial sums, 0 if not split
    moved: F32  # [rows, 1, 1] log bytes of operands and result

    def rows(self, which: NDArray[np.int64]) -> "Cuts":
        """Some of the products."""
        return Cuts(*(part[which] for part in self))


class Launches(NamedTuple):
    """Log times, f32[rows, tiles, splits], and what their derivatives are made of."""

    log_ns: F32
    busy: F32  # log, of what overlaps
    alone: F32  # waves x a tile: its share of `busy`
    memory: F32
    cache: F32
    tile: F32  # log ns of a tile's loop
    program: F32  # ns of a tile with its start
    waves: F32
    computes: F32  # share of a tile's time that its FLOPs have


def cuts(tokens: F64, n: F64, k: F64, multiprocessors: int) -> Cuts:
    """How products (f64[rows] each) are cut."""
    m, width, depth = (np.asarray(size, np.float64)[:, None, None] for size in (tokens, n, k))
    tall, wide = (np.array([tile[axis] for tile in TILES], np.float64)[None, :, None] for axis in (0, 1))
    parts = np.array(SPLITS, np.float64)[None, None, :]
    tiles = np.ceil(m / tall) * np.ceil(width / wide) * parts
    loop = np.ceil(depth / parts / DEPTH) * DEPTH
    waves = tiles / multiprocessors
    loads = 2.0 * (tall + wide) * loop
    found = (
        np.log(2.0 * tall * wide * loop),
        np.log(loads),
        np.log(tiles * loads),
        np.ceil(waves),
        np.maximum(waves, 1.0),
        np.where(parts > 1, 4.0 * (parts + 1.0) * m * width, 0.0) + np.zeros_like(tiles),
        np.log(2.0 * (width * depth + m * depth + m * width)),
    )
    return Cuts(*(part.astype(np.float32) for part in found))


def launches(prices: Prices, cut: Cuts) -> Launches:
    """The time of each cut."""
    by_tile = {name: prices[name][None, :, None] for name in PER_TILE}
    computing = cut.flops - prices["peak"] - by_tile["rate"]
    loading = cut.loads - prices["tile_bandwidth"] - by_tile["load"]
    longer = np.maximum(computing, loading)
    tile = longer + np.log1p(np.exp(-OVERLAP * np.abs(computing - loading))) / OVERLAP
    program = np.exp(tile) + np.float32(TILE_START_NS) * np.exp(by_tile["start"])
    rounded = _sigmoid(by_tile["idle"])
    waves = rounded * cut.waves + (1 - rounded) * cut.share
    alone = np.log(waves) + np.log(program)
    memory = cut.moved - prices["bandwidth"] + np.zeros_like(alone)
    cache = cut.lines - prices["cache_bandwidth"] - by_tile["cache"]
    most = np.maximum(np.maximum(alone, memory), cache)
    weights = [np.exp(OVERLAP * (part - most)) for part in (alone, memory, cache)]
    total = weights[0] + weights[1] + weights[2]
    busy = most + np.log(total) / OVERLAP
    joining = np.where(cut.joined > 0, np.exp(prices["join"]) + cut.joined / np.exp(prices["bandwidth"]), 0)
    log_ns = np.log(np.exp(busy) + np.exp(prices["launch"]) + joining)
    return Launches(
        log_ns, busy, weights[0] / total, weights[1] / total, weights[2] / total, tile, program, waves,
        _sigmoid(OVERLAP * (computing - loading)),
    )  # fmt: skip


def slopes(prices: Prices, cut: Cuts, found: Launches, towards: F32) -> Prices:
    """Derivatives by each price of the sum of `towards` (f32[rows, tiles, splits]) x log times."""
    split = cut.joined > 0
    of_busy = towards * np.exp(found.busy - found.log_ns)
    of_alone = of_busy * found.alone
    of_memory = of_busy * found.memory
    of_cache = of_busy * found.cache
    of_tile = of_alone * np.exp(found.tile) / found.program
    of_compute = of_tile * found.computes
    of_load = of_tile - of_compute
    rounded = _sigmoid(prices["idle"][None, :, None])
    of_join = np.where(split, towards * np.exp(-found.log_ns), 0)
    return {
        "peak": -of_compute.sum(),
        "rate": -of_compute.sum(axis=(0, 2)),
        "tile_bandwidth": -of_load.sum(),
        "load": -of_load.sum(axis=(0, 2)),
        "start": (of_alone - of_tile).sum(axis=(0, 2)),
        "idle": (of_alone * (cut.waves - cut.share) / found.waves * rounded * (1 - rounded)).sum(axis=(0, 2)),
        "bandwidth": -of_memory.sum() - (of_join * cut.joined).sum() / np.exp(prices["bandwidth"]),
        "cache_bandwidth": -of_cache.sum(),
        "cache": -of_cache.sum(axis=(0, 2)),
        "join": of_join.sum() * np.exp(prices["join"]),
        "launch": (towards * np.exp(prices["launch"] - found.log_ns)).sum(),
    }


def _sigmoid(x: F32) -> F32:
    half: F32 = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))
    return half
