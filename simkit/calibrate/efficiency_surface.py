"""The log ratio of time to roofline over two sizes, at the sizes that were measured and between them.

A table of scattered measurements, over many shapes, is asked for one shape: at every node of the measured sizes it
gives its own measurement where it has one, else a local plane through the nearest measurements of any shape. Between
nodes the ratio is bilinear in the logs; outside it is the edge's.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.local_regression import local_linear
from simkit.calibrate.provenance import I8, Tag

F64 = NDArray[np.float64]

WIDTH = 0.6  # octaves
NEIGHBOURS = 16
NEAREST_SHAPES = 12  # whose measurements may stand in; 4 and 40 predict worse
LATTICE = 0.5  # octaves


class Surface(NamedTuple):
    """Ratios of one shape at the nodes."""

    x: F64  # [a] rising
    y: F64  # [b] rising
    ratio: F64  # [a, b]
    tag: I8  # [a, b]


@dataclass(frozen=True)
class Scattered:
    """Measured ratios over (x, y) of several shapes; a shape is a point among shapes."""

    shapes: F64  # [s, d] features: the distance of two says how alike they are
    shape: NDArray[np.int64]  # [n] whose measurement it is
    x: F64  # [n]
    y: F64  # [n]
    features: F64  # [n, f] of the measurement, for planes
    ratio: F64  # [n]


def surface(data: Scattered, shape: F64, features: F64, x: F64, y: F64) -> Surface:
    """The surface of a shape.

    Args:
        data: the measurements.
        shape: f64[d], like a row of `data.shapes`.
        features: f64[a, b, f] of each node, like rows of `data.features`.
        x: f64[a] nodes, rising.
        y: f64[b] nodes, rising.
    """
    ratio = np.full((len(x), len(y)), np.nan)
    tag = np.full(ratio.shape, int(Tag.MEASURED), np.int8)
    away = np.abs(data.shapes - shape).sum(axis=1)
    own = data.shape == int(np.argmin(away)) if away.min() < 1e-9 else np.zeros(len(data.shape), np.bool_)
    i, j = np.searchsorted(x, data.x[own]), np.searchsorted(y, data.y[own])
    ratio[i, j] = data.ratio[own]
    holes = np.isnan(ratio)
    if holes.any():
        near = np.isin(data.shape, np.argsort(away)[:NEAREST_SHAPES])
        thin_features, thin_ratio = _thinned(data.features[near], data.ratio[near], data.shape[near])
        found = local_linear(thin_features, thin_ratio, features[holes], WIDTH, NEIGHBOURS)
        ratio[holes] = found.values
        tag[holes] = np.where(found.inside, Tag.INTERPOLATED, Tag.EXTRAPOLATED)
    return Surface(x, y, ratio, tag)


def _thinned(features: F64, ratio: F64, shape: NDArray[np.int64]) -> tuple[F64, F64]:
    """The means of each shape's measurements in cells of a lattice.

    Of a fine grid the nearest points to a hole all lie on one side of it, and their plane would be extrapolated.
    """
    cells = np.concatenate([shape[:, None], np.floor(features / LATTICE + 0.5)], axis=1)
    _, index, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    columns = [np.bincount(index.ravel(), weights=column) / count for column in (*features.T, ratio)]
    return np.stack(columns[:-1], axis=1), columns[-1]


def at(found: Surface, x: F64, y: F64) -> tuple[F64, I8]:
    """Ratio and tag at points (f64[..] each); the axes are read on a log scale, so all of them must be above 0."""
    i, u, exact_x, inside_x = _place(found.x, x)
    j, v, exact_y, inside_y = _place(found.y, y)
    i1, j1 = np.minimum(i + 1, len(found.x) - 1), np.minimum(j + 1, len(found.y) - 1)
    low = found.ratio[i, j] * (1.0 - v) + found.ratio[i, j1] * v
    high = found.ratio[i1, j] * (1.0 - v) + found.ratio[i1, j1] * v
    corners = [(i, j, (u < 1) & (v < 1)), (i, j1, (u < 1) & (v > 0)), (i1, j, (u > 0) & (v < 1)), (i1, j1, u * v > 0)]
    worst = np.max([np.where(used, found.tag[a, b], Tag.MEASURED) for a, b, used in corners], axis=0)
    tag = np.where(exact_x & exact_y, worst, np.maximum(worst, Tag.INTERPOLATED))
    tag = np.where(inside_x & inside_y, tag, Tag.EXTRAPOLATED)
    return low * (1.0 - u) + high * u, tag.astype(np.int8)


def _place(nodes: F64, values: F64) -> tuple[NDArray[np.intp], F64, NDArray[np.bool_], NDArray[np.bool_]]:
    """The node at or below each value, how far it lies towards the next (in logs), if it is a node, if it is within."""
    inside = (values >= nodes[0] * (1 - 1e-12)) & (values <= nodes[-1] * (1 + 1e-12))
    clipped = np.clip(values, nodes[0], nodes[-1])
    low = np.clip(np.searchsorted(nodes, clipped, side="right") - 1, 0, max(len(nodes) - 2, 0))
    high = np.minimum(low + 1, len(nodes) - 1)
    span = np.log(nodes[high] / nodes[low])
    share = np.where(span > 0, np.log(clipped / nodes[low]) / np.where(span > 0, span, 1.0), 0.0)
    share = np.where(share < 1e-12, 0.0, np.where(share > 1.0 - 1e-12, 1.0, share))
    return low, share, (share == 0.0) | (share == 1.0), inside
