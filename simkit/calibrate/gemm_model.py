"""GEMM times: a staircase over tokens for each (n, k), carried over to shapes that were not timed.

Per dtype the log ratio of time to the table's own roofline (`ceilings.py`) is a matrix [shapes, tokens]:

- a hole in it is the weighted mean of two guesses whose errors have little in common: interpolation along its own row,
  put right by what this misses in the nearest rows; and the plane through the nearest rows at this size;
- a shape that was not timed is a local plane over log n and log k through the nearest shapes' rows, of those that the
  same kernel can compute; where a table has many sizes of few shapes, these are often an octave away, and the plane is
  one through what tiles and waves (`tile_model.py`) leave, taken by half;
- between two token counts the time is the next one's (a stair) or on the line between them, whichever predicts left-out
  sizes better, for gaps of at most a tile (128 tokens) and for wider ones apart;
- beyond the last size the ratio of the last one stays.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.ceilings import Ceilings, ceilings
from simkit.calibrate.disturbed import undisturbed
from simkit.calibrate.local_regression import local_linear
from simkit.calibrate.operator_sizes import DTYPE_BYTES
from simkit.calibrate.provenance import Tag, Times
from simkit.calibrate.tile_model import TileModel, fit_tiles

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

WIDTH = 0.5  # octaves of n or k; 0.3 to 0.8 were tried on H100 and H200 and differ by 0.1 points
NEIGHBOURS = 12
# n decides how many tiles there are, k only how long each takes. 0.7 to 1.5 were tried; over five ways to hold shapes
# out 1.5 is better by 0.1 points on both devices
N_OCTAVE = 1.5
TILE = 128  # tokens
# vLLM computes products with scales of 128 x 128 blocks by another kernel where n is not whole in 64 or k in 128
# (should_use_deepgemm_for_fp8_linear); such shapes are so many octaves from the others
BLOCK_N, BLOCK_K, APART = 64, 128, 2.0
TRIED_SHAPES = 60  # left out to weigh planes against rows
MOST_OFF = 0.3  # a larger log error counts as this
# tables of 16-bit products that are many sizes of few shapes (Vidur's: 32 shapes, 259 sizes and more)
FEWEST_SHAPES, MOST_SHAPES, FEWEST_SIZES = 12, 100, 100
# of what tiles leave, and how far shapes are alike in it: 0 to 1 and 0.5 to 1.5 were tried on the shapes that are not
# held out of A100's and H100's tables, and differ by up to 0.7 points
LEFT_SHARE, LEFT_WIDTH = 0.5, 1.0


def gemm_work(tokens: F64, n: F64, k: F64, dtype: str) -> tuple[F64, F64]:
    """FLOPs, and bytes moved with activations of 16 bits and weights of `dtype`."""
    return 2.0 * tokens * n * k, n * k * DTYPE_BYTES[dtype] + 2.0 * tokens * (n + k)


@dataclass(frozen=True)
class _Gemm:
    """The table of one dtype."""

    top: Ceilings
    shapes: F64  # [s, 3] where each shape stands among others
    tokens: F64  # [t] measured sizes, rising
    ratio: F64  # [s, t] log of time / roofline, holes filled
    measured: Flags  # [s, t]
    stairs: tuple[bool, bool]  # round up within gaps of at most a tile, and within wider ones
    tiles: TileModel | None  # for shapes that were not timed
    left: F64  # [s, t] log of time / what tiles take; without tiles the same as `ratio`


@dataclass(frozen=True)
class GemmModel:
    """Times of [tokens, k] x [k, n], by dtype."""

    by_dtype: dict[str, _Gemm]

    def ns(self, tokens: F64, n: int, k: int, dtype: str = "bf16") -> Times:
        """Times of products of `tokens` (f64[..]) rows; KeyError for a dtype that was not timed."""
        table = self.by_dtype[dtype]
        asked = np.asarray(tokens, np.float64)
        flat = np.maximum(asked.ravel(), 1.0)
        row, measured, inside = _row(table, n, k, dtype)
        log_ns = row + np.log(_line(table, table.tokens, n, k, dtype))
        ns, exact, within = _over_tokens(table, log_ns, flat, n, k, dtype)
        tag = np.where(within & inside, Tag.INTERPOLATED, Tag.EXTRAPOLATED)
        tag = np.where(exact >= 0, np.where(measured[np.maximum(exact, 0)], Tag.MEASURED, tag), tag)
        ns = np.where(asked.ravel() > 0, ns, 0.0)
        return Times(ns.reshape(asked.shape), tag.astype(np.int8).reshape(asked.shape))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What was timed."""
        return tuple(self.by_dtype)


def fit_gemm(frame: "pd.DataFrame", multiprocessors: int) -> GemmModel:
    """The model of a profile's `gemm` table; of several kernels at the same sizes the fastest counts."""
    parts = frame.groupby("dtype")
    return GemmModel({str(dtype): _fit(part, str(dtype), multiprocessors) for dtype, part in parts})


def _fit(part: "pd.DataFrame", dtype: str, multiprocessors: int) -> _Gemm:
    best = part.groupby(["n", "k", "tokens"])["median_ns"].min()
    grid = best.unstack("tokens")
    n, k = (grid.index.get_level_values(level).to_numpy(np.float64) for level in ("n", "k"))
    tokens = grid.columns.to_numpy(np.float64)
    ns = grid.to_numpy(np.float64)
    work = gemm_work(tokens[None, :], n[:, None], k[:, None], dtype)
    known = np.isfinite(ns)
    top = ceilings(np.broadcast_to(work[0], ns.shape)[known], np.broadcast_to(work[1], ns.shape)[known], ns[known])
    ratio, disturbed = undisturbed(np.log(ns) - np.log(top.line_ns(*work)))
    shapes = _places(n, k, dtype)
    tiles = None
    if dtype == "bf16" and FEWEST_SHAPES <= len(n) <= MOST_SHAPES and known.sum() >= FEWEST_SIZES * len(n):
        row, column = np.nonzero(known)
        tiles = fit_tiles(tokens[column], n[row], k[row], ns[known], multiprocessors)
    filled = _filled(shapes, tokens, ratio)
    left = filled + np.log(top.line_ns(*work)) - _tile_rows(tiles, tokens, n, k) if tiles else filled
    return _Gemm(top, shapes, tokens, filled, known & ~disturbed, _stairs(tokens, ns), tiles, left)


def _places(n: F64, k: F64, dtype: str) -> F64:
    """[s, 3]: two shapes are as alike as their places are near."""
    broken = (n % BLOCK_N != 0) | (k % BLOCK_K != 0) if dtype == "fp8_block" else np.zeros(n.shape)
    return np.stack([N_OCTAVE * np.log2(n), np.log2(k), APART * broken], axis=1)


def _filled(shapes: F64, tokens: F64, ratio: F64) -> F64:
    """The matrix with its holes filled; where no other row has a size, along the row alone."""
    known = np.isfinite(ratio)
    if known.all():
        return ratio
    along = np.log(tokens)
    own = np.stack([np.interp(along, along[has], row[has]) for row, has in zip(ratio, known, strict=True)])
    out = np.where(known, ratio, own)
    share = _plane_share(shapes, along, out, known)
    for column in np.flatnonzero(~known.all(axis=0)):
        has = known[:, column]
        # a row can tell what interpolation misses only if it is interpolated over the same gap
        wants = ~has
        for signature in np.unique(known[wants], axis=0):
            rows = np.flatnonzero(wants & (known == signature).all(axis=1))
            others = np.flatnonzero(has)
            gap = signature & (np.arange(len(tokens)) != column)
            guess = np.array([_over_gap(along, ratio[i], gap & known[i], column) for i in others])
            usable = np.isfinite(guess)
            if not usable.any():
                continue
            missed = ratio[others[usable], column] - guess[usable]
            put_right = local_linear(shapes[others[usable]], missed, shapes[rows], WIDTH, NEIGHBOURS).values
            plane = local_linear(shapes[others], ratio[others, column], shapes[rows], WIDTH, NEIGHBOURS).values
            out[rows, column] = (1.0 - share) * (own[rows, column] + put_right) + share * plane
    return out


def _plane_share(shapes: F64, along: F64, rows: F64, known: Flags) -> float:
    """The weight of a plane through other shapes beside a row's own interpolation, from how wrong each is when it
    leaves out what it predicts: the inverse of mean squares, large errors cut.
    """
    some = np.linspace(0, len(shapes) - 1, min(len(shapes), TRIED_SHAPES)).astype(np.int64)
    if len(along) < 3 or len(shapes) < 3:
        return 0.0
    weight = (along[1:-1] - along[:-2]) / (along[2:] - along[:-2])
    own = rows[some, :-2] * (1.0 - weight) + rows[some, 2:] * weight - rows[some, 1:-1]
    others = [np.arange(len(shapes)) != i for i in some]
    plane = [
        local_linear(shapes[other], rows[other], shapes[[i]], WIDTH, NEIGHBOURS).values[0] - rows[i]
        for i, other in zip(some, others, strict=True)
    ]
    judged = known[some]
    between = judged[:, 1:-1] & judged[:, :-2] & judged[:, 2:]
    if not between.any():
        return 0.0
    squares = [
        float(np.mean(np.minimum(np.abs(off[which]), MOST_OFF) ** 2))
        for off, which in ((own, between), (np.stack(plane), judged))
    ]
    return squares[0] / max(sum(squares), 1e-12)


def _over_gap(along: F64, row: F64, has: Flags, column: int) -> float:
    """A row's value at a column from the columns it may use; NaN if none."""
    return float(np.interp(along[column], along[has], row[has])) if has.any() else float("nan")


def _stairs(tokens: F64, ns: F64) -> tuple[bool, bool]:
    """Whether rounding up beats the line for sizes left out one at a time, in narrow gaps and in wide ones."""
    if len(tokens) < 3:
        return True, False
    share = (tokens[1:-1] - tokens[:-2]) / (tokens[2:] - tokens[:-2])
    line = ns[:, :-2] * (1.0 - share) + ns[:, 2:] * share
    narrow = tokens[2:] - tokens[:-2] <= TILE
    found = []
    for gaps, default in ((narrow, True), (~narrow, False)):
        off_line = np.abs(line / ns[:, 1:-1] - 1.0)[:, gaps]
        off_stair = np.abs(ns[:, 2:] / ns[:, 1:-1] - 1.0)[:, gaps]
        both = np.isfinite(off_line) & np.isfinite(off_stair)
        found.append(bool(off_stair[both].mean() < off_line[both].mean()) if both.any() else default)
    return found[0], found[1]


def _line(table: _Gemm, tokens: F64, n: int, k: int, dtype: str) -> F64:
    return table.top.line_ns(*gemm_work(tokens, np.array(float(n)), np.array(float(k)), dtype))


def _row(table: _Gemm, n: int, k: int, dtype: str) -> tuple[F64, Flags, bool]:
    """The log ratios of a shape at the measured tokens, which of them are its own, and whether it lies among others."""
    asked = _places(np.array([float(n)]), np.array([float(k)]), dtype)
    same = np.flatnonzero((np.abs(table.shapes - asked) < 1e-9).all(axis=1))
    if len(same):
        return table.ratio[same[0]], table.measured[same[0]], True
    width = WIDTH if table.tiles is None else LEFT_WIDTH
    found = local_linear(table.shapes, table.left, asked, width, NEIGHBOURS)
    row = found.values[0]
    if table.tiles is not None:
        ours = _tile_rows(table.tiles, table.tokens, np.array([float(n)]), np.array([float(k)]))[0]
        row = ours + LEFT_SHARE * row - np.log(_line(table, table.tokens, n, k, dtype))
    return row, np.zeros(len(table.tokens), np.bool_), bool(found.inside[0])


def _tile_rows(tiles: TileModel, tokens: F64, n: F64, k: F64) -> F64:
    """Log times of tiles, f64[s, t]."""
    every = (array.ravel() for array in np.broadcast_arrays(tokens[None, :], n[:, None], k[:, None]))
    return tiles.log_ns(*every).reshape(len(n), len(tokens))


def _over_tokens(
    table: _Gemm, log_ns: F64, asked: F64, n: int, k: int, dtype: str
) -> tuple[F64, NDArray[np.intp], Flags]:
    """Times at `asked` tokens, the column each is equal to (-1 where to none), and which lie within the sizes."""
    tokens = table.tokens
    above = np.searchsorted(tokens, asked)
    high = np.minimum(above, len(tokens) - 1)
    low = np.maximum(high - 1, 0)
    exact = np.where(tokens[high] == asked, high, -1)
    width = np.maximum(tokens[high] - tokens[low], 1.0)
    share = np.clip((asked - tokens[low]) / width, 0.0, 1.0)
    stair = np.where(width <= TILE, table.stairs[0], table.stairs[1]) | (high == low)
    ns = np.exp(log_ns)
    between = np.where(stair, ns[high], ns[low] * (1.0 - share) + ns[high] * share)
    line = _line(table, asked, n, k, dtype)
    beyond = line * np.exp(log_ns[-1] - np.log(_line(table, tokens[-1:], n, k, dtype)))
    within = (asked >= tokens[0]) & (asked <= tokens[-1])
    # below the smallest size the smallest one's time is an upper bound and a good guess: weights are read either way
    return np.where(exact >= 0, ns[high], np.where(asked > tokens[-1], beyond, between)), exact, within
