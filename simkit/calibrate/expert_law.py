"""The time of a layer of routed experts, from what its grouped GEMMs read and compute and what copies of tokens move.

    time = fixed + copies moved + (memory^q + compute^q)^(1/q)

- memory: the weights of the experts that tokens reach, at a bandwidth that few programs do not fill, and that an L2
  cache exceeds where all of them lie in it from the call before, as in a table timed in a loop;
- compute: tiles of rows, each expert's last one padded (vLLM's `moe_align_block_size`). A kernel has tiles of several
  heights and takes a good one: the softmin over heights. A tile's rate depends on the slice's width and on hidden;
- copies: gathered, activated and summed again whatever GPU their expert is on: vLLM's fused experts run these passes
  over all tokens x top k.

Left out, because they gain 0.2 points at most where models are left out of the fit (docs/calibrate_errors.md): the
start of each program, a price for each expert held, a loss at short hidden sizes, passes over this GPU's copies alone.
"""

from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.expert_routing import TILE_ROWS

F64 = NDArray[np.float64]

# a slice whose rows are not whole in 16 elements is read a few bytes at a time: Triton vectorises loads of what it
# knows to be divisible by 16
ALIGNED = 16
BLOCK = 128  # columns of a program
MIDDLE_WIDTH, MIDDLE_HIDDEN = 1024.0, 4096.0  # where slopes of the rate are zero
# beginning, lowest and highest price; times the table's own best rates where one of these is meant
_PRICES = {
    "bandwidth": (1.0, 0.2, 2.0),  # of the best at which weights were read
    **{
        f"rate_{rows}": (share, share / 30.0, share * 10.0)
        for rows, share in zip(TILE_ROWS, (0.15, 0.3, 0.5, 0.8, 1.15, 1.15), strict=True)
    },  # of the best at which copies were computed
    "fixed": (0.8, 0.1, 2.0),  # of the shortest time
    "copy_hidden": (3.0, 0.01, 40.0),  # bytes for each of `hidden`
    "copy_width": (6.0, 0.01, 60.0),
    "narrow": (100.0, 1.0, 3000.0),  # width at which half of a tile's rate is lost
    "corner": (3.0, 1.2, 12.0),
    "programs": (50.0, 0.1, 5000.0),  # that reach half of the bandwidth
    "unaligned": (1.5, 1.0, 20.0),
    "cache_bytes": (50e6, 3e6, 200e6),
    "cached_copies": (2.0, 1.0, 8.0),  # times the bandwidth
    "cached_weights": (1.5, 1.0, 6.0),
    "wider": (1.0, np.exp(-0.5), np.exp(0.5)),  # e^slope of the log rate over the log width
    "deeper": (1.0, np.exp(-0.5), np.exp(0.5)),
}
NAMES = tuple(_PRICES)
_BEGIN, LOWEST, HIGHEST = (np.log([price[i] for price in _PRICES.values()]) for i in range(3))


class Layers(NamedTuple):
    """Layers of experts as one GPU runs them, f64[n]; `tiles` is f64[len(TILE_ROWS), n]."""

    copies: F64  # of all tokens, whatever GPU they go to
    hidden: F64
    width: F64  # of a slice
    matrices: F64  # 3 with a gate, 2 without
    element_bytes: F64
    rows: F64  # copies for experts held here
    reached: F64  # experts that got any
    tiles: F64

    def some(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> "Layers":
        """A part of them."""
        return Layers(*(part[..., which] for part in self))


class Law(NamedTuple):
    """Prices of one kernel on one device."""

    log_prices: F64  # f64[len(NAMES)], or f64[m, len(NAMES)] of m laws at once
    best: F64  # f64[3]: log bytes/ns of weights, FLOPs/ns of copies, ns of the shortest

    def log_ns(self, layers: Layers) -> F64:
        """Log times, f64[n], or f64[m, n]."""
        price = {name: np.exp(self.log_prices[..., i, None]) for i, name in enumerate(NAMES)}
        bandwidth, rate, shortest = np.exp(self.best).tolist()
        bandwidth = bandwidth * price["bandwidth"]
        # of down's weights alone rows are a slice long
        unaligned = 1.0 + np.where(layers.width % ALIGNED == 0, 0.0, price["unaligned"] - 1.0) / layers.matrices
        weights = _weights(layers)
        memory = weights * unaligned * (1.0 + price["programs"] / _programs(layers)) / bandwidth
        memory = memory / _cached(weights, price["cache_bytes"], price["cached_weights"])
        tiles = zip(TILE_ROWS, layers.tiles, strict=True)
        computing = _softmin([count * (rows / price[f"rate_{rows}"]) for rows, count in tiles])
        slower = (1.0 + price["narrow"] / layers.width) * np.exp(
            np.log(price["wider"]) * np.log(layers.width / MIDDLE_WIDTH)
            + np.log(price["deeper"]) * np.log(layers.hidden / MIDDLE_HIDDEN)
        )
        compute = _row_flops(layers) * unaligned / rate * computing * slower
        longer, shorter = np.maximum(memory, compute), np.minimum(memory, compute)
        products = longer * (1.0 + (shorter / longer) ** price["corner"]) ** (1.0 / price["corner"])
        moved = layers.copies * (price["copy_hidden"] * layers.hidden + price["copy_width"] * layers.width)
        copying = moved / bandwidth / _cached(moved, price["cache_bytes"], price["cached_copies"])
        return np.asarray(np.log(price["fixed"] * shortest + copying + products), np.float64)


def beginning(layers: Layers, ns: F64) -> Law:
    """The law from which a fit to times (f64[n]) begins: the table's best rates, but for a few that may be wrong."""
    rates = (_weights(layers) / ns, layers.rows * _row_flops(layers) / ns)
    best = (np.percentile(rates[0], 97.0), np.percentile(rates[1], 99.5), ns.min())
    return Law(_BEGIN.copy(), np.log(np.maximum(best, 1e-9)))


def _weights(layers: Layers) -> F64:
    """Bytes of the experts reached."""
    elements = layers.matrices * layers.hidden * layers.width
    return np.maximum(layers.reached, 1e-3) * elements * layers.element_bytes


def _row_flops(layers: Layers) -> F64:
    """Of one copy of a token."""
    return 2.0 * layers.matrices * layers.hidden * layers.width


def _programs(layers: Layers) -> F64:
    """Of one of the two products, with a tile of rows for each expert."""
    columns = np.ceil((layers.matrices - 1.0) * layers.width / BLOCK) + np.ceil(layers.hidden / BLOCK)
    return np.asarray(np.maximum(layers.reached, 1e-3) * columns / 2.0, np.float64)


def _cached(moved: F64, cache: F64, faster: F64) -> F64:
    """How many times the memory's bandwidth: `faster` where all lies in the cache, 1 far above it."""
    return np.asarray(1.0 + (faster - 1.0) / (1.0 + (moved / cache) ** 2), np.float64)


def _softmin(times: list[F64]) -> F64:
    """(sum of t^-12)^(-1/12) of positive times; fitted, 12 came to 4 to 20."""
    least = np.maximum(reduce(np.minimum, times), 1e-12)
    total = np.zeros_like(least)
    for time in times:
        squared = (least / np.maximum(time, 1e-12)) ** 2
        total += squared * squared * squared * squared * squared * squared
    return np.asarray(least * total ** (-1.0 / 12.0), np.float64)
