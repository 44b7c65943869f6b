"""Kriging: values between scattered places, which far from all of them fade to zero (Cressie, Statistics for Spatial
Data, 1993, chapter 3).

For what a law leaves: near a known place its value, far from it nothing. Two covariances are added, one that reaches
far and one that does not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

# (standard deviation, distance over which it falls to e^-1/2); reaches of 0.4 to 3 predict alike
COVARIANCES = ((0.15, 2.0), (0.10, 0.6))
NOISE = 0.07  # standard deviation of a value; 0.05 to 0.1 predict alike


@dataclass(frozen=True)
class Kriging:
    """Values known at some places."""

    places: F64  # [n, d], scaled so that a distance of 1 is near
    weights: F64  # [n, columns]

    def at(self, places: F64) -> F64:
        """f64[m, columns] at places, f64[m, d]."""
        found: F64 = _covariance(places, self.places) @ self.weights
        return found


def krige(places: F64, values: F64) -> Kriging:
    """Kriging of f64[n, columns] values at f64[n, d] places; n >= 1, no NaN."""
    covariance = _covariance(places, places) + NOISE**2 * np.eye(len(places))
    return Kriging(places, np.asarray(np.linalg.solve(covariance, values), np.float64))


def _covariance(a: F64, b: F64) -> F64:
    squared = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    parts = [deviation**2 * np.exp(-squared / (2.0 * reach**2)) for deviation, reach in COVARIANCES]
    total: F64 = np.sum(parts, axis=0)
    return total
