"""Decode attention: efficiency over (batch, context) for each shape of heads, and a factor for ragged batches.

The line that efficiency is a share of moves keys and values once, and queries and outputs. Shapes that were not timed
are found between those that were: what a kernel does depends first on batch x KV heads, then on context, then on how
many query heads share a KV head.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.attention_kind import Kind, attention_shape, by_kind, kind_of, nearest_kind
from simkit.calibrate.ceilings import Ceilings, ceilings
from simkit.calibrate.efficiency_surface import Scattered, Surface, at, surface
from simkit.calibrate.makespan import EVEN, Raggedness, fit_raggedness, skew
from simkit.calibrate.operator_sizes import AttentionShape, context_array
from simkit.calibrate.provenance import Tag, Times

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

HALF = 0.5  # an octave of heads tells half as much as one of batch


def decode_work(batch: F64, context_tokens: F64, shape: AttentionShape) -> tuple[F64, F64]:
    """FLOPs and bytes of `batch` queries over `context_tokens` in sum; each context is cut at the window."""
    seen = np.minimum(context_tokens, batch * shape.window) if shape.window else context_tokens
    flops = 4.0 * shape.heads * shape.head_dim * seen
    return flops, seen * shape.kv_bytes + 4.0 * batch * shape.heads * shape.head_dim


@dataclass(frozen=True)
class _Decode:
    """The measurements of one kind."""

    top: Ceilings
    data: Scattered
    batches: F64  # nodes
    contexts: F64  # nodes, tokens of one request


@dataclass(frozen=True)
class DecodeModel:
    """Times of one launch for a batch of requests of one new token each."""

    by_kind: dict[Kind, _Decode]
    raggedness: Raggedness
    multiprocessors: int

    def ns(self, batch: F64, context_tokens: F64, shape: AttentionShape) -> Times:
        """Times of batches (f64[..]) over `context_tokens` in sum (f64[..]), lengths equal; 0 for an empty batch."""
        batch, context_tokens = np.broadcast_arrays(np.asarray(batch, float), np.asarray(context_tokens, float))
        kind = nearest_kind(self.by_kind, kind_of(shape))
        table = self.by_kind[kind]
        at_least = np.maximum(batch, 1.0)
        total = np.maximum(context_tokens, at_least)
        each = total / at_least
        if kind.window == 0 and shape.window:
            each = np.minimum(each, float(shape.window))
        ratio, tag = at(_surface(table, shape), at_least, each)
        ns = np.exp(ratio) * table.top.line_ns(*decode_work(at_least, total, shape))
        tag = tag if kind == kind_of(shape) else np.full_like(tag, Tag.EXTRAPOLATED)
        return Times(np.where(batch > 0, ns, 0.0), tag)

    def ragged_ns(self, contexts: I64, shape: AttentionShape) -> Times:
        """The time of one batch of these context lengths (i64[requests]): as if equal, times what raggedness costs."""
        even = self.ns(np.array(float(len(contexts))), np.array(float(contexts.sum())), shape)
        seen = np.minimum(contexts, shape.window) if shape.window else contexts
        factor = skew(seen, shape.kv_heads, self.multiprocessors, self.raggedness)
        if factor == 1.0:
            return even
        tag = Tag.INTERPOLATED if self.raggedness.fitted_on else Tag.EXTRAPOLATED
        return Times(even.ns * factor, np.maximum(even.tag, np.int8(tag)))


def fit_decode(frame: "pd.DataFrame", multiprocessors: int) -> DecodeModel:
    """The model of a profile's `attention_decode` table; of several kernels at the same sizes the fastest counts."""
    even = frame[frame["contexts"] == ""]
    tables = {kind: _fit(part) for kind, part in by_kind(even)}
    model = DecodeModel(tables, EVEN, multiprocessors)
    ragged = frame[frame["contexts"] != ""]
    if ragged.empty:
        return model
    return DecodeModel(tables, _raggedness(model, ragged), multiprocessors)


def _raggedness(model: DecodeModel, ragged: "pd.DataFrame") -> Raggedness:
    batches, factors, heads = [], [], []
    for i in range(len(ragged)):
        row = ragged.iloc[i]
        contexts = context_array(str(row["contexts"]))
        shape = attention_shape(row)
        even = model.ns(np.array(float(len(contexts))), np.array(float(contexts.sum())), shape)
        batches.append(np.minimum(contexts, shape.window) if shape.window else contexts)
        factors.append(float(row["median_ns"]) / float(even.ns))
        heads.append(shape.kv_heads)
    return fit_raggedness(batches, np.array(heads), np.array(factors), model.multiprocessors)


def _fit(part: "pd.DataFrame") -> _Decode:
    sizes = ["heads", "kv_heads", "batch", "context_tokens", "head_dim", "window", "kv_dtype"]
    best = part.groupby(sizes)["median_ns"].min().reset_index()
    heads, kv_heads, batch, total = (best[name].to_numpy(np.float64) for name in sizes[:4])
    first = best.iloc[0]
    # work is linear in heads, so one shape of one head gives everybody's
    one = AttentionShape(1, 1, int(first["head_dim"]), int(first["window"]), str(first["kv_dtype"]))
    flops, moved = _work(heads, kv_heads, batch, total, one)
    ns = best["median_ns"].to_numpy(np.float64)
    top = ceilings(flops, moved, ns)
    shapes, shape = np.unique(np.stack([heads, kv_heads], axis=1), axis=0, return_inverse=True)
    each = total / batch
    data = Scattered(
        shapes=_place(shapes[:, 0], shapes[:, 1]),
        shape=shape.ravel().astype(np.int64),
        x=batch,
        y=each,
        features=_features(heads, kv_heads, batch, each),
        ratio=np.log(ns / top.line_ns(flops, moved)),
    )
    return _Decode(top, data, np.unique(batch), np.unique(each))


def _work(heads: F64, kv_heads: F64, batch: F64, total: F64, one: AttentionShape) -> tuple[F64, F64]:
    seen = np.minimum(total, batch * one.window) if one.window else total
    return 4.0 * heads * one.head_dim * seen, seen * kv_heads * one.kv_bytes + 4.0 * batch * heads * one.head_dim


def _place(heads: F64, kv_heads: F64) -> F64:
    return np.stack([HALF * np.log2(heads / kv_heads), HALF * np.log2(kv_heads)], axis=-1)


def _features(heads: F64, kv_heads: F64, batch: F64, each: F64) -> F64:
    place = _place(heads, kv_heads)
    return np.stack([np.log2(batch * kv_heads), np.log2(each), place[..., 0], place[..., 1]], axis=-1)


def _surface(table: _Decode, shape: AttentionShape) -> Surface:
    batch, each = np.meshgrid(table.batches, table.contexts, indexing="ij")
    heads, kv_heads = np.full_like(batch, shape.heads), np.full_like(batch, shape.kv_heads)
    features = _features(heads, kv_heads, batch, each)
    place = _place(np.array(float(shape.heads)), np.array(float(shape.kv_heads)))
    return surface(table.data, place, features, table.batches, table.contexts)
