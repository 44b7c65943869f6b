"""The line that decode attention's efficiency is a share of: work, cache and waves, each at a price fitted to a table.

    time = fixed + bytes of keys and values, and of queries + bytes past the L2 cache + FLOPs
         + waves launched and run + tiles of programs alone, and in pairs, on a multiprocessor + joining the parts

How a kernel cuts contexts into parts differs: by the batch's own contexts, by the longest that its page tables hold, or
in a way that is not known here, where waves say nothing. The one whose line fits a table best is taken; what it misses
is left to the efficiencies.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.chip import Chip
from simkit.calibrate.nonnegative import nonnegative_least_squares
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.split_kv import AT_ONCE, Programs, programs

F64 = NDArray[np.float64]
Cutting = Literal["unknown", "own context", "longest context"]
_CUTTINGS: tuple[Cutting, ...] = ("own context", "longest context")

# A KV cache is read from L2 if it lies there from the call before, as in a table timed in a loop: all of one that fills
# this share of it, nothing of one that is as large. Halves of an A100's each keep what they read themselves.
IN_CACHE = (0.5, 0.25, 0.75, 0.95)
# waves are believed if they leave less than this share of what is left without them, and half a percent less
BETTER, SURELY = 0.8, 0.005
FEWEST_ROWS = 60
CACHE_OCTAVES = 1.0  # apart are batches in the cache and in memory; 0, 1, 2 were tried on A100, H200, B200 and L40S


class Batches(NamedTuple):
    """Even batches of one kind of kernel, f64[..] of one shape each."""

    batch: F64
    context: F64  # tokens of each request that are read, windows applied
    heads: F64
    kv_heads: F64


class DecodeLine(NamedTuple):
    """The line of one kind of kernel."""

    cutting: Cutting
    one: AttentionShape  # one head of the kind
    chip: Chip
    longest: float  # tokens that page tables hold
    in_cache: float  # share of the L2 cache that a KV cache read again may fill
    price: F64  # ns of each term
    shortest_ns: float

    def ns(self, asked: Batches) -> F64:
        """Times, f64[..]; never below the shortest measured."""
        line: F64 = np.maximum(
            _terms(asked, self.one, self.chip, self.in_cache, self._programs(asked)) @ self.price, self.shortest_ns
        )
        return line

    def regime(self, asked: Batches) -> F64:
        """[.., 3]: batches that run alike are alike: from the cache or not, cut or not, octaves of half waves."""
        kv = _kv_bytes(asked, self.one)
        past_cache = CACHE_OCTAVES * _past_cache(kv, self.chip, self.in_cache)
        found = self._programs(asked)
        if found is None:
            return np.stack([past_cache, np.zeros_like(kv), np.zeros_like(kv)], axis=-1)
        half_waves = np.ceil(found.busy / self.chip.multiprocessors)
        return np.stack([past_cache, (found.parts > 1).astype(np.float64), np.log2(half_waves)], axis=-1)

    def _programs(self, asked: Batches) -> Programs | None:
        return _cut(asked, self.one, self.chip, self.cutting, self.longest)


def fit_decode_line(known: Batches, ns: F64, one: AttentionShape, chip: Chip) -> DecodeLine:
    """The line of measurements (f64[n], n >= 1) of one kind: least squares of the relative error, no negative price."""
    longest = float(known.context.max())
    found = [_fitted(known, ns, one, chip, "unknown", longest, share) for share in IN_CACHE]
    if len(ns) < FEWEST_ROWS:
        return found[0][1]
    left, best = min(found, key=lambda fitted: fitted[0])
    for cutting in _CUTTINGS:
        waves_left, line = _fitted(known, ns, one, chip, cutting, longest, best.in_cache)
        if waves_left / BETTER + SURELY < left:
            left, best = waves_left / BETTER + SURELY, line
    return best


def _fitted(
    known: Batches, ns: F64, one: AttentionShape, chip: Chip, cutting: Cutting, longest: float, in_cache: float
) -> tuple[float, DecodeLine]:
    """A line, and the mean log error that it leaves."""
    terms = _terms(known, one, chip, in_cache, _cut(known, one, chip, cutting, longest))
    price = nonnegative_least_squares(terms / ns[:, None], np.ones(len(ns)))
    line = DecodeLine(cutting, one, chip, longest, in_cache, price, float(ns.min()))
    missed = np.log(ns / line.ns(known))
    return float(np.abs(missed - np.median(missed)).mean()), line


def _cut(asked: Batches, one: AttentionShape, chip: Chip, cutting: Cutting, longest: float) -> Programs | None:
    if cutting == "unknown":
        return None
    width = asked.context if cutting == "own context" else np.maximum(asked.context, longest)
    return programs(*asked[:2], width, *asked[2:], one.head_dim, chip.multiprocessors)


def _kv_bytes(asked: Batches, one: AttentionShape) -> F64:
    return asked.batch * asked.context * asked.kv_heads * one.kv_bytes


def _past_cache(kv: F64, chip: Chip, in_cache: float) -> F64:
    """The share of so many bytes that is read from memory."""
    return np.clip((kv / chip.l2_bytes - in_cache) / (1.0 - in_cache), 0.0, 1.0)


def _terms(asked: Batches, one: AttentionShape, chip: Chip, in_cache: float, cut: Programs | None) -> F64:
    """[.., terms] what there is to pay for."""
    seen = asked.batch * asked.context
    kv = _kv_bytes(asked, one)
    past_cache = kv * _past_cache(kv, chip, in_cache)
    queries = 4.0 * asked.batch * asked.heads * one.head_dim  # and outputs
    terms = [np.ones_like(kv), kv, queries, past_cache, 4.0 * asked.heads * one.head_dim * seen]
    if cut is not None:
        split = cut.parts > 1
        terms += [
            cut.waves,
            np.ceil(cut.launched / (AT_ONCE * chip.multiprocessors)),
            np.where(cut.paired > 0, 0.0, cut.tiles),
            cut.tiles * (cut.waves - 1.0 + cut.paired),
            split.astype(np.float64),
            np.where(split, cut.busy_parts, 0.0),
        ]
    return np.stack(terms, axis=-1)
