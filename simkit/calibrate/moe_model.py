"""Routed experts: a curve over tokens for each configuration, and a law for configurations that were not timed.

Per dtype and kernel a law (`expert_law.py`) says what a layer takes from the experts that its tokens reach and the
tiles and copies these make. A configuration that was timed keeps its own log ratio to the law, linear in the log of
tokens between measured sizes. One that was not gets the ratio that kriging over the others' gives at each size: theirs
where they are like it, none where none is.

A law of one model knows little of other sizes: there times between measured tokens follow the table's roofline.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.ceilings import Ceilings, ceilings
from simkit.calibrate.expert_kernels import SIZES, Kernels, fit_kernels, model_of, moe_shape
from simkit.calibrate.kriging import Kriging, krige
from simkit.calibrate.operator_sizes import DTYPE_BYTES, MoeShape
from simkit.calibrate.provenance import Tag, Times
from simkit.models.operators import touched_experts

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

# trained routers are uneven; AIConfigurator draws experts from a power law, and 1.01 is its mildest
PREFERRED = ("power_law_1.01", "power_law_1.2", "balanced")
NEIGHBOURS = 10  # a configuration within the box of as many is interpolated
MOST_OFF = 0.4  # a larger log ratio counts as this where it is carried over
# what counts as far between two configurations: octaves of hidden, slice, experts held, experts that a token reaches
# here, GPUs that experts are spread over, elements that a slice is whole in; spread or not; another kernel
SCALE = np.array([1.5, 1.5, 1.5, 1.5, 3.0, 2.0, 0.7, 0.5])
MOST_WHOLE = 64


def moe_work(tokens: F64, shape: MoeShape) -> tuple[F64, F64]:
    """FLOPs and bytes of one GPU where experts are chosen at random: products of every copy, weights reached once."""
    width, held = shape.width / shape.tensor, shape.experts / shape.expert
    copies = tokens * shape.top_k / shape.expert
    reached = touched_experts(shape.experts, shape.top_k, tokens) / shape.expert
    elements = float(shape.matrices) * shape.hidden * width
    weights = np.minimum(reached, held) * elements * DTYPE_BYTES[shape.dtype]
    return 2.0 * copies * elements, weights + copies * (4.0 * shape.hidden + 6.0 * width) + 4.0 * tokens * shape.hidden


@dataclass(frozen=True)
class _Moe:
    """The table of one dtype and routing."""

    kernels: Kernels
    rows: dict[MoeShape, int]
    places: F64  # [c, 8] where each configuration stands among others
    tokens: F64  # [t] measured sizes, rising
    ratio: F64  # [c, t] log of time / law, holes interpolated along tokens
    measured: Flags  # [c, t]
    others: Kriging  # of ratios over places
    roofline: Ceilings | None  # which times between measured sizes follow where the law is of one model

    def log_ns(self, tokens: F64, shape: MoeShape, routing: str, ratio: F64) -> F64:
        """Log times, f64[n], of a configuration whose ratios to the law are f64[t] at the measured sizes."""
        along, nodes = np.log(tokens), np.log(self.tokens)
        if self.roofline is None:
            return np.asarray(self.kernels.log_ns(tokens, shape, routing) + np.interp(along, nodes, ratio), np.float64)
        known = self.kernels.log_ns(self.tokens, shape, routing) + ratio
        over = known - np.log(self.roofline.line_ns(*moe_work(self.tokens, shape)))
        log_ns: F64 = np.interp(along, nodes, over) + np.log(self.roofline.line_ns(*moe_work(tokens, shape)))
        return log_ns


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
        some = np.maximum(asked.ravel(), 1.0)
        row = table.rows.get(shape)
        if row is not None:
            ratio, measured, inside = table.ratio[row], table.measured[row], True
            own = table.tokens[measured]  # others may have been timed further
        else:
            place = _place(shape, table.kernels)
            ratio, measured = table.others.at(place[None])[0], np.zeros(len(table.tokens), np.bool_)
            own, inside = table.tokens, _inside(table.places, place)
        log_ns = table.log_ns(some, shape, routing, ratio)
        within = (some >= own[0]) & (some <= own[-1])
        tag = np.where(within & inside, Tag.INTERPOLATED, Tag.EXTRAPOLATED)
        tag = np.where(np.isin(some, table.tokens[measured]), Tag.MEASURED, tag).astype(np.int8)
        ns = np.where(asked.ravel() > 0, np.exp(log_ns), 0.0)
        return Times(ns.reshape(asked.shape), tag.reshape(asked.shape))


def fit_moe(frame: "pd.DataFrame") -> MoeModel:
    """The model of a profile's `moe` table; of several kernels at the same sizes the fastest counts."""
    tables = {}
    point = ["dtype", "routing", *SIZES, "tokens"]
    fastest = frame.sort_values([*point, "median_ns", "kernel"]).drop_duplicates(point)
    for dtype, part in fastest.groupby("dtype"):
        kernels, off = fit_kernels(part, str(dtype))
        for routing, rows in part.assign(off=off).groupby("routing"):
            tables[str(dtype), str(routing)] = _table(rows, str(dtype), kernels)
    return MoeModel(tables)


def _table(part: "pd.DataFrame", dtype: str, kernels: Kernels) -> _Moe:
    grid = part.set_index([*SIZES, "tokens"])["off"].unstack("tokens")
    tokens = grid.columns.to_numpy(np.float64)
    off = grid.to_numpy(np.float64)
    measured = np.isfinite(off)
    along = np.log(tokens)
    filled = np.stack([np.interp(along, along[has], row[has]) for row, has in zip(off, measured, strict=True)])
    shapes = [moe_shape([int(value) for value in index], dtype) for index in grid.index]
    places = np.stack([_place(shape, kernels) for shape in shapes])
    others = krige(places, np.clip(filled, -MOST_OFF, MOST_OFF))
    alone = len({model_of(shape) for shape in shapes}) == 1
    rows = {shape: i for i, shape in enumerate(shapes)}
    return _Moe(kernels, rows, places, tokens, filled, measured, others, _roofline(part, dtype) if alone else None)


def _roofline(part: "pd.DataFrame", dtype: str) -> Ceilings:
    """What the best rates of a table make of its work."""
    tokens, ns = (part[name].to_numpy(np.float64) for name in ("tokens", "median_ns"))
    sizes = part[list(SIZES)].to_numpy(np.int64)
    flops, moved = np.empty(len(ns)), np.empty(len(ns))
    for rows in part.groupby(list(SIZES)).indices.values():
        flops[rows], moved[rows] = moe_work(tokens[rows], moe_shape(sizes[rows[0]], dtype))
    return ceilings(flops, moved, ns)


def _place(shape: MoeShape, kernels: Kernels) -> F64:
    """f64[8]: two configurations err alike as their places are near."""
    width = shape.width / shape.tensor
    whole = max(int(width), 1)
    octaves = np.log2([shape.hidden, width, shape.experts / shape.expert, shape.top_k / shape.expert, shape.expert])
    even = np.log2(min(whole & -whole, MOST_WHOLE))
    place: F64 = np.array([*octaves, even, shape.expert > 1, list(kernels.laws).index(kernels.of(shape))]) / SCALE
    return place


def _inside(places: F64, place: F64) -> bool:
    """Whether it lies within the box of the nearest configurations."""
    near = places[np.argsort(((places - place) ** 2).sum(axis=1), kind="stable")[:NEIGHBOURS]]
    return bool(((place >= near.min(axis=0) - 1e-9) & (place <= near.max(axis=0) + 1e-9)).all())
