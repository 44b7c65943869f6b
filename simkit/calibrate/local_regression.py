"""Local linear regression: a value between scattered points from the nearest of them.

Each asked point gets its own plane, least squares over its nearest known points, those near by counting most
(Cleveland, Robust Locally Weighted Regression, 1979). Outside the box of these points the plane is read at the box's
edge, so that a value is carried outward and never runs away.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

RIDGE = 1e-3  # on the slopes, in units of a point at full weight: directions in which no point differs get slope 0
AT_A_TIME = 512  # asked points: bounds the memory of their distances
EDGE = 1e-9  # of a feature


class Local(NamedTuple):
    """Values at the asked points, and which of these lie within the box of the points they were made from."""

    values: F64  # [m] or [m, c]
    inside: Flags  # [m]


def local_linear(known: F64, values: F64, asked: F64, width: float, neighbours: int) -> Local:
    """Values at `asked` from values at `known` points.

    Args:
        known: f64[n, d] features, scaled so that a distance of `width` is near; n >= 1.
        values: f64[n] or f64[n, c], no NaN.
        asked: f64[m, d].
        width: of the Gaussian weight, at least as wide as the nearest point is far.
        neighbours: how many points a plane rests on.
    """
    columns = values.reshape(len(values), -1)
    count = min(neighbours, len(known))
    out = np.empty((len(asked), columns.shape[1]))
    inside = np.empty(len(asked), dtype=np.bool_)
    for start in range(0, len(asked), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        out[part], inside[part] = _planes(known, columns, asked[part], width, count)
    return Local(out.reshape(len(asked), *values.shape[1:]), inside)


def _planes(known: F64, values: F64, asked: F64, width: float, count: int) -> tuple[F64, Flags]:
    squared = ((asked[:, None, :] - known[None, :, :]) ** 2).sum(axis=2)
    near = np.argpartition(squared, count - 1, axis=1)[:, :count]
    distance = np.sqrt(np.take_along_axis(squared, near, axis=1))
    points = known[near]  # [m, count, d]
    reach = np.maximum(width, 1.2 * distance.min(axis=1))[:, None]
    weight = np.exp(-((distance / reach) ** 2) / 2.0) + 1e-9
    low, high = points.min(axis=1), points.max(axis=1)
    at = np.clip(asked, low, high)
    design = np.concatenate([np.ones((*near.shape, 1)), points - at[:, None, :]], axis=2)
    weighted = design * weight[:, :, None]
    normal = np.einsum("mki,mkj->mij", weighted, design)
    slopes = np.arange(1, design.shape[2])
    normal[:, slopes, slopes] += RIDGE
    right = np.einsum("mki,mkc->mic", weighted, values[near])
    solved: F64 = np.linalg.solve(normal, right)[:, 0, :]
    return solved, np.asarray((np.abs(at - asked) <= EDGE).all(axis=1))
