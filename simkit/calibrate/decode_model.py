"""Decode attention: efficiency over (batch, context) for each shape of heads, and a factor for ragged batches.

Efficiency is a share of the line of `decode_line.py`, which knows how a kernel fills the chip. Shapes that were not
timed are found between those that were: what a kernel does depends first on batch x KV heads and on the waves these
make, then on context, then on how many query heads share a KV head.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.attention_kind import Kind, attention_shape, by_kind, kind_of, nearest_kind
from simkit.calibrate.chip import Chip
from simkit.calibrate.decode_line import Batches, DecodeLine, fit_decode_line
from simkit.calibrate.efficiency_surface import Scattered, Surface, at, surface
from simkit.calibrate.makespan import EVEN, Raggedness, fit_raggedness, skew
from simkit.calibrate.operator_sizes import AttentionShape, context_array
from simkit.calibrate.provenance import Tag, Times

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

HALF = 0.5  # an octave of heads tells half as much as one of batch


@dataclass(frozen=True)
class _Decode:
    """The measurements of one kind."""

    line: DecodeLine
    data: Scattered
    batches: F64  # nodes
    contexts: F64  # nodes, tokens of one request


@dataclass(frozen=True)
class DecodeModel:
    """Times of one launch for a batch of requests of one new token each."""

    by_kind: dict[Kind, _Decode]
    raggedness: Raggedness
    chip: Chip

    def ns(self, batch: F64, context_tokens: F64, shape: AttentionShape) -> Times:
        """Times of batches (f64[..]) over `context_tokens` in sum (f64[..]), lengths equal; 0 for an empty batch."""
        batch, context_tokens = np.broadcast_arrays(np.asarray(batch, float), np.asarray(context_tokens, float))
        kind = nearest_kind(self.by_kind, kind_of(shape))
        table = self.by_kind[kind]
        at_least = np.maximum(batch, 1.0)
        each = np.maximum(context_tokens, at_least) / at_least
        if kind.window == 0 and shape.window:
            each = np.minimum(each, float(shape.window))
        ratio, tag = at(_surface(table, shape), at_least, each)
        # by the window asked for: a kind of another window may stand in, and has its efficiency, not its work
        seen = table.line.one._replace(window=shape.window)
        ns = np.exp(ratio) * table.line.ns(_batches(seen, at_least, each, shape.heads, shape.kv_heads))
        tag = tag if kind == kind_of(shape) else np.full_like(tag, Tag.EXTRAPOLATED)
        return Times(np.where(batch > 0, ns, 0.0), tag)

    def ragged_ns(self, contexts: I64, shape: AttentionShape) -> Times:
        """The time of one batch of these context lengths (i64[requests]): as if equal, times what raggedness costs."""
        even, seen = self.even_ns(contexts, shape), _seen(contexts, shape)
        factor = skew(seen, shape.kv_heads, self.chip.multiprocessors, self.raggedness)
        if factor == 1.0:
            return even
        tag = Tag.INTERPOLATED if self.raggedness.fitted_on else Tag.EXTRAPOLATED
        return Times(even.ns * factor, np.maximum(even.tag, np.int8(tag)))

    def even_ns(self, contexts: I64, shape: AttentionShape) -> Times:
        """The time of as many requests of one length that read as many tokens in sum."""
        # of unequal lengths the mean of what windows leave, which is less than the window of the mean
        alike = contexts.min() == contexts.max()
        total = contexts.sum() if alike else _seen(contexts, shape).sum()
        return self.ns(np.array(float(len(contexts))), np.array(float(total)), shape)


def _seen(contexts: I64, shape: AttentionShape) -> I64:
    """The tokens that each request's query attends to."""
    return np.minimum(contexts, shape.window) if shape.window else contexts


def fit_decode(frame: "pd.DataFrame", chip: Chip) -> DecodeModel:
    """The model of a profile's `attention_decode` table; of several kernels at the same sizes the fastest counts."""
    even = frame[frame["contexts"] == ""]
    model = DecodeModel({kind: _fit(part, chip) for kind, part in by_kind(even)}, EVEN, chip)
    ragged = frame[frame["contexts"] != ""]
    return model if ragged.empty else replace(model, raggedness=_raggedness(model, ragged))


def _raggedness(model: DecodeModel, ragged: "pd.DataFrame") -> Raggedness:
    batches, factors, heads = [], [], []
    for i in range(len(ragged)):
        row = ragged.iloc[i]
        contexts = context_array(str(row["contexts"]))
        shape = attention_shape(row)
        batches.append(_seen(contexts, shape))
        factors.append(float(row["median_ns"]) / float(model.even_ns(contexts, shape).ns))
        heads.append(shape.kv_heads)
    return fit_raggedness(batches, np.array(heads), np.array(factors), model.chip.multiprocessors)


def _fit(part: "pd.DataFrame", chip: Chip) -> _Decode:
    sizes = ["heads", "kv_heads", "batch", "context_tokens"]
    best = part.groupby(sizes)["median_ns"].min().reset_index()
    heads, kv_heads, batch, total = (best[name].to_numpy(np.float64) for name in sizes)
    one = attention_shape(part.iloc[0])._replace(heads=1, kv_heads=1)
    each = total / batch
    known = _batches(one, batch, each, heads, kv_heads)
    ns = best["median_ns"].to_numpy(np.float64)
    line = fit_decode_line(known, ns, one, chip)
    shapes, shape = np.unique(np.stack([heads, kv_heads], axis=1), axis=0, return_inverse=True)
    data = Scattered(
        shapes=_place(shapes[:, 0], shapes[:, 1]),
        shape=shape.ravel().astype(np.int64),
        x=batch,
        y=each,
        features=_features(line, batch, each, heads, kv_heads),
        ratio=np.log(ns / line.ns(known)),
    )
    return _Decode(line, data, np.unique(batch), np.unique(each))


def _batches(one: AttentionShape, batch: F64, each: F64, heads: F64 | float, kv_heads: F64 | float) -> Batches:
    """Batches of `each` tokens a request; heads of an array or of one shape."""
    seen = np.minimum(each, float(one.window)) if one.window else each
    return Batches(batch, seen, np.broadcast_to(heads, batch.shape), np.broadcast_to(kv_heads, batch.shape))


def _place(heads: F64, kv_heads: F64) -> F64:
    return np.stack([HALF * np.log2(heads / kv_heads), HALF * np.log2(kv_heads)], axis=-1)


def _features(line: DecodeLine, batch: F64, each: F64, heads: F64, kv_heads: F64) -> F64:
    sizes = np.stack([np.log2(batch * kv_heads), np.log2(each)], axis=-1)
    regime = line.regime(_batches(line.one, batch, each, heads, kv_heads))
    return np.concatenate([sizes, _place(heads, kv_heads), regime], axis=-1)


def _surface(table: _Decode, shape: AttentionShape) -> Surface:
    batch, each = np.meshgrid(table.batches, table.contexts, indexing="ij")
    heads, kv_heads = np.full_like(batch, shape.heads), np.full_like(batch, shape.kv_heads)
    features = _features(table.line, batch, each, heads, kv_heads)
    place = _place(np.array(float(shape.heads)), np.array(float(shape.kv_heads)))
    return surface(table.data, place, features, table.batches, table.contexts)
