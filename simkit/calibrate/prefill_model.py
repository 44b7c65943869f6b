"""Prefill attention: efficiency over (chunk, past) for each shape of heads.

The line that efficiency is a share of computes all query-key pairs of a causal chunk, in tiles of 128 packed rows, with
`EXTRA_KEYS` more keys a row for what a tile costs beside its keys, and moves queries, keys, values and outputs once.
Where no past was measured the same share is assumed to hold behind any past: tagged extrapolated.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.attention_kind import Kind, by_kind, kind_of, nearest_kind
from simkit.calibrate.ceilings import Ceilings, ceilings
from simkit.calibrate.efficiency_surface import Scattered, at, surface
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.provenance import Tag, Times
from simkit.models.attention_operators import attended_pairs

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]

# 0, 160 and 300 were tried on H100 and H200 (FlashAttention 3): 4.5, 4.2 and 4.1 % held out
EXTRA_KEYS = 300.0
TILE_ROWS = 128.0
HALF = 0.5  # an octave of sharing or heads tells half as much as one of rows
PAST_SCALE = 256.0  # tokens: the axis of past is log(past + this), so that 0 has a place


def prefill_work(
    batch: F64, chunk: F64, past: F64, heads: F64, kv_heads: F64, head_dim: float, window: int, kv_bytes: float
) -> tuple[F64, F64]:
    """FLOPs and bytes; `kv_bytes` of one token of one KV head."""
    pairs = attended_pairs(chunk, past, window or None)
    rows = np.ceil(chunk * heads / kv_heads / TILE_ROWS) * TILE_ROWS * kv_heads
    seen = np.minimum(past + chunk, window + chunk) if window else past + chunk
    flops = 4.0 * head_dim * batch * (heads * pairs + EXTRA_KEYS * rows)
    return flops, batch * (4.0 * chunk * heads * head_dim + seen * kv_heads * kv_bytes)


@dataclass(frozen=True)
class _Prefill:
    top: Ceilings
    data: Scattered
    chunks: F64
    pasts: F64  # nodes, PAST_SCALE added


@dataclass(frozen=True)
class PrefillModel:
    """Times of one launch for `batch` requests that each add a chunk to their past."""

    by_kind: dict[Kind, _Prefill]

    def ns(self, chunk: F64, past: F64, shape: AttentionShape, batch: int = 1) -> Times:
        """Times of chunks (f64[..]) behind a past (f64[..]); 0 for an empty chunk."""
        chunk, past = np.broadcast_arrays(np.asarray(chunk, np.float64), np.asarray(past, np.float64))
        kind = nearest_kind(self.by_kind, kind_of(shape))
        table = self.by_kind[kind]
        some = np.maximum(chunk, 1.0)
        heads, kv_heads, launched = (np.array(float(value)) for value in (shape.heads, shape.kv_heads, batch))
        some_chunk, some_past = np.meshgrid(table.chunks, table.pasts, indexing="ij")
        features = _features(heads, kv_heads, launched, some_chunk, some_past)
        found = surface(table.data, _place(heads, kv_heads, launched), features, table.chunks, table.pasts)
        ratio, tag = at(found, some, past + PAST_SCALE)
        one = shape.kv_bytes / shape.kv_heads
        work = prefill_work(launched, some, past, heads, kv_heads, shape.head_dim, shape.window, one)
        tag = tag if kind == kind_of(shape) else np.full_like(tag, Tag.EXTRAPOLATED)
        return Times(np.where(chunk > 0, np.exp(ratio) * table.top.line_ns(*work), 0.0), tag)


def fit_prefill(frame: "pd.DataFrame") -> PrefillModel:
    """The model of a profile's `attention_prefill` table; of several kernels at the same sizes the fastest counts."""
    return PrefillModel({kind: _fit(part) for kind, part in by_kind(frame)})


def _fit(part: "pd.DataFrame") -> _Prefill:
    sizes = ["heads", "kv_heads", "batch", "chunk", "past"]
    best = part.groupby(sizes)["median_ns"].min().reset_index()
    heads, kv_heads, batch, chunk, past = (best[name].to_numpy(np.float64) for name in sizes)
    first = part.iloc[0]
    one = AttentionShape(1, 1, int(first["head_dim"]), int(first["window"]), str(first["kv_dtype"]))
    flops, moved = prefill_work(batch, chunk, past, heads, kv_heads, one.head_dim, one.window, one.kv_bytes)
    ns = best["median_ns"].to_numpy(np.float64)
    top = ceilings(flops, moved, ns)
    shapes, shape = np.unique(np.stack([heads, kv_heads, batch], axis=1), axis=0, return_inverse=True)
    data = Scattered(
        shapes=_place(shapes[:, 0], shapes[:, 1], shapes[:, 2]),
        shape=shape.ravel().astype(np.int64),
        x=chunk,
        y=past + PAST_SCALE,
        features=_features(heads, kv_heads, batch, chunk, past + PAST_SCALE),
        ratio=np.log(ns / top.line_ns(flops, moved)),
    )
    return _Prefill(top, data, np.unique(chunk), np.unique(past + PAST_SCALE))


def _place(heads: F64, kv_heads: F64, batch: F64) -> F64:
    return np.stack([np.log2(batch * heads), HALF * np.log2(heads / kv_heads), HALF * np.log2(heads)], axis=-1)


def _features(heads: F64, kv_heads: F64, batch: F64, chunk: F64, past: F64) -> F64:
    place = _place(heads, kv_heads, batch)
    place = np.broadcast_to(place, (*chunk.shape, place.shape[-1]))
    return np.concatenate([place, np.log2(chunk)[..., None], np.log2(past)[..., None]], axis=-1)
