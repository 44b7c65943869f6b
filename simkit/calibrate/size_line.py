"""Time over size, piece by piece: alpha + beta x size between each two measured sizes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.provenance import Tag, Times

F64 = NDArray[np.float64]


class SizeLine(NamedTuple):
    """Measured sizes, rising, and their times, made to rise too: more never takes less time."""

    size: F64
    ns: F64

    def at(self, size: F64) -> Times:
        """Times at sizes (f64[..]); below the smallest its time, beyond the largest the last piece that rises goes on.

        Of one size, or where no piece rises, the time beyond is in proportion to the size.
        """
        asked = np.asarray(size, np.float64)
        ns = np.interp(asked, self.size, self.ns) + np.maximum(asked - self.size[-1], 0.0) * self._slope()
        within = (asked >= self.size[0]) & (asked <= self.size[-1])
        tag = np.where(np.isin(asked, self.size), Tag.MEASURED, np.where(within, Tag.INTERPOLATED, Tag.EXTRAPOLATED))
        return Times(np.where(asked > 0, ns, 0.0), tag.astype(np.int8))

    def _slope(self) -> float:
        """ns a unit of size beyond the largest: from the last size that takes less time than it."""
        shorter = np.flatnonzero(self.ns < self.ns[-1])
        if not len(shorter):
            return float(self.ns[-1] / self.size[-1])
        # what was pooled at the end is noise around one time: a flat end would have all larger sizes cost nothing more
        last = shorter[-1]
        return float((self.ns[-1] - self.ns[last]) / (self.size[-1] - self.size[last]))


def size_line(size: F64, ns: F64) -> SizeLine:
    """The line through measurements (f64[n] each, n >= 1); of equal sizes their median."""
    sizes, index = np.unique(size, return_inverse=True)
    medians = np.array([np.median(ns[index == i]) for i in range(len(sizes))])
    return SizeLine(sizes, _rising(medians))


def _rising(values: F64) -> F64:
    """The nearest sequence that never falls, least squares (pool adjacent violators; Barlow et al., 1972)."""
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        means.append(float(value))
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            total = counts[-2] + counts[-1]
            means[-2:] = [(means[-2] * counts[-2] + means[-1] * counts[-1]) / total]
            counts[-2:] = [total]
    return np.repeat(means, counts)
