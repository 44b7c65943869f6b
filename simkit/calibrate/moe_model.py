"""Routed experts: a curve over tokens for each configuration, carried over to configurations that were not timed.

The line that efficiency is a share of reads the weights of the experts that tokens reach, moves activations once, and
computes every token copy that falls on this GPU. As for GEMMs, a configuration that was not timed is a local plane
through the nearest ones; between token counts the share is linear in the log.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.ceilings import Ceilings, ceilings
from simkit.calibrate.local_regression import local_linear
from simkit.calibrate.operator_sizes import DTYPE_BYTES, MoeShape
from simkit.calibrate.provenance import Tag, Times
from simkit.models.operators import touched_experts

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

WIDTH = 0.6
NEIGHBOURS = 10
# trained routers are uneven; AIConfigurator draws experts from a power law, and 1.01 is its mildest
PREFERRED = ("power_law_1.01", "power_law_1.2", "balanced")
SIZES = ("hidden", "width", "experts", "top_k", "tensor", "expert")


def moe_work(tokens: F64, shape: MoeShape) -> tuple[F64, F64]:
    """FLOPs and bytes of one GPU: gate, up and down of every token copy, weights of the experts reached."""
    width, held = shape.width / shape.tensor, shape.experts / shape.expert
    copies = tokens * shape.top_k / shape.expert
    reached = touched_experts(shape.experts, shape.top_k, tokens) / shape.expert
    matrices = 3.0 * shape.hidden * width
    weights = np.minimum(reached, held) * matrices * DTYPE_BYTES[shape.dtype]
    return 2.0 * copies * matrices, weights + copies * (4.0 * shape.hidden + 6.0 * width) + 4.0 * tokens * shape.hidden


@dataclass(frozen=True)
class _Moe:
    """The table of one dtype and routing."""

    top: Ceilings
    places: F64  # [c, 5] where each configuration stands among others
    tokens: F64  # [t] measured sizes, rising
    ratio: F64  # [c, t], holes interpolated along tokens
    measured: Flags  # [c, t]


@dataclass(frozen=True)
class MoeModel:
    """Times of the routed experts of one layer on one GPU, router excluded."""

    tables: dict[tuple[str, str], _Moe]  # by dtype, routing

    def routing(self, dtype: str) -> str | None:
        """The routing that stands for real traffic, of those timed; None if the dtype was not timed."""
        timed = [routing for known, routing in self.tables if known == dtype]
        return next((routing for routing in PREFERRED if routing in timed), timed[0] if timed else None)

    def ns(self, tokens: F64, shape: MoeShape, routing: str | None = None) -> Times:
        """Times for `tokens` (f64[..]) of a step, before they are spread; KeyError for a dtype that was not timed."""
        routing = self.routing(shape.dtype) if routing is None else routing
        if routing is None:
            raise KeyError(shape.dtype)
        table = self.tables[shape.dtype, routing]
        asked = np.asarray(tokens, np.float64)
        some = np.maximum(asked, 1.0)
        place = _place(*(np.array([float(getattr(shape, name))]) for name in SIZES))
        same = np.flatnonzero((np.abs(table.places - place) < 1e-9).all(axis=1))
        if len(same):
            row, measured, inside = table.ratio[same[0]], table.measured[same[0]], True
            own = table.tokens[measured]  # others may have been timed further
        else:
            found = local_linear(table.places, table.ratio, place, WIDTH, NEIGHBOURS)
            row, measured, inside = found.values[0], np.zeros(len(table.tokens), np.bool_), bool(found.inside[0])
            own = table.tokens
        ratio = np.interp(np.log(some), np.log(table.tokens), row)
        within = (some >= own[0]) & (some <= own[-1])
        tag = np.where(within & inside, Tag.INTERPOLATED, Tag.EXTRAPOLATED)
        tag = np.where(np.isin(some, table.tokens[measured]), Tag.MEASURED, tag).astype(np.int8)
        ns = np.exp(ratio) * table.top.line_ns(*moe_work(some, shape))
        return Times(np.where(asked > 0, ns, 0.0), tag)


def moe_shape(sizes: list[int], dtype: str) -> MoeShape:
    """The shape of sizes in the order of `SIZES`."""
    hidden, width, experts, top_k, tensor, expert = sizes
    return MoeShape(hidden, width, experts, top_k, tensor, expert, dtype)


def fit_moe(frame: "pd.DataFrame") -> MoeModel:
    """The model of a profile's `moe` table; of several kernels at the same sizes the fastest counts."""
    tables = {}
    for _, part in frame.groupby(["dtype", "routing"]):
        dtype = str(part["dtype"].iloc[0])
        tables[dtype, str(part["routing"].iloc[0])] = _fit(part, dtype)
    return MoeModel(tables)


def _fit(part: "pd.DataFrame", dtype: str) -> _Moe:
    grid = part.groupby([*SIZES, "tokens"])["median_ns"].min().unstack("tokens")
    tokens = grid.columns.to_numpy(np.float64)
    ns = grid.to_numpy(np.float64)
    known = np.isfinite(ns)
    shapes = [moe_shape([int(value) for value in index], dtype) for index in grid.index]
    work = [moe_work(tokens, shape) for shape in shapes]
    flops, moved = (np.stack([parts[i] for parts in work]) for i in (0, 1))
    top = ceilings(flops[known], moved[known], ns[known])
    ratio = np.log(ns) - np.log(top.line_ns(flops, moved))
    along = np.log(tokens)
    filled = np.stack([np.interp(along, along[has], row[has]) for row, has in zip(ratio, known, strict=True)])
    sizes = [np.array([float(getattr(shape, name)) for shape in shapes]) for name in SIZES]
    return _Moe(top, _place(*sizes), tokens, filled, known)


def _place(hidden: F64, width: F64, experts: F64, top_k: F64, tensor: F64, expert: F64) -> F64:
    """[c, 5]: sizes of one expert, experts held here, how many a token reaches here, how widely it is spread."""
    columns = (hidden, width / tensor, experts / expert, top_k / expert, expert)
    scale = np.array([1.0, 1.0, 1.0, 1.0, 0.5])
    place: F64 = np.stack([np.log2(column) for column in columns], axis=-1) * scale
    return place
