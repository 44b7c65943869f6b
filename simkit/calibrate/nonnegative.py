"""Non-negative least squares by an active set (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23)."""

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

TALL = 4  # rows a column from which the problem is made smaller first
TOLERANCE = 1e-10  # of the scaled problem: a gradient this small is none


def nonnegative_least_squares(features: F64, target: F64) -> F64:
    """The coefficients c >= 0, f64[k], with the least |features @ c - target|.

    `features` is f64[n, k], `target` f64[n]. Columns are scaled to length 1 first, because a time's coefficients span
    ten orders of magnitude. A column of zeros gets 0; of columns that depend on each other some solution is given.
    Raises RuntimeError if it does not end in 30 turns a column, which no input is known to need.
    """
    length = np.linalg.norm(features, axis=0)
    scaled = features / np.where(length > 0, length, 1.0)
    size = float(np.linalg.norm(target)) or 1.0
    wanted = target / size
    columns = features.shape[1]
    if len(scaled) > TALL * columns:
        # the triangle of a QR factorisation has the same products, so the same solution, in as many rows as columns
        triangle: F64 = np.asarray(np.linalg.qr(np.column_stack([scaled, wanted]), mode="r"))
        scaled, wanted = triangle[:, :-1], triangle[:, -1]
    free = np.zeros(columns, dtype=np.bool_)
    solution = np.zeros(columns)
    for _ in range(30 * columns):
        gradient = scaled.T @ (wanted - scaled @ solution)
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if free.all() or gradient[best] <= TOLERANCE:
            return np.where(length > 0, solution * size / np.where(length > 0, length, 1.0), 0.0)
        free[best] = True
        solution = _pulled_back(scaled, wanted, free, solution)
    raise RuntimeError(f"non-negative least squares of {features.shape} values did not end")


def _pulled_back(scaled: F64, wanted: F64, free: NDArray[np.bool_], solution: F64) -> F64:
    """The least squares of the free columns; those it drives below 0 are fixed at 0, one after the other, in `free`."""
    while free.any():
        trial = np.zeros(len(solution))
        trial[free] = np.linalg.lstsq(scaled[:, free], wanted, rcond=None)[0]
        below = free & (trial <= 0.0)
        if not below.any():
            return trial
        step = np.min(solution[below] / np.maximum(solution[below] - trial[below], 1e-300))
        solution = solution + step * (trial - solution)
        free &= solution > TOLERANCE * max(1.0, float(solution.max()))
        solution = np.where(free, solution, 0.0)
    return np.zeros(len(solution))
