"""Timing one operator: how often to repeat it, which repeats to believe, and what is kept of them.

A repeat is a run of enough calls to outlast the clock's grain. A repeat that was disturbed (the operating system took
the processor away) is set aside, and so are the next ones, whose caches are still cold, as long as others remain.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

LEAST_REPEATS = 5
MOST_REPEATS = 60
SETTLING = 3  # repeats after a disturbed one that are not believed: a CPU's caches fill again (seen: 4 to 5 repeats)
LEAST_BELIEVED = 3
LONGEST_S = 0.4  # of one visit to a point, beyond LEAST_REPEATS


class Repeat(NamedTuple):
    """One repeat."""

    ns: float  # a call
    calm: bool = True  # nothing disturbed it, as far as the device can tell


class Timer(Protocol):
    """An operator set up at a size, its first calls behind it."""

    @property
    def kernel(self) -> str:
        """The code that runs; "" where the table has no column for it."""

    def repeat(self) -> Repeat:
        """Run it once more."""


class Timing(NamedTuple):
    """What a profile keeps of a point."""

    median_ns: float
    p10_ns: float
    p90_ns: float
    repeats: int
    kernel: str = ""

    @property
    def noise(self) -> float:
        """(p90 - p10) / median of its repeats."""
        return (self.p90_ns - self.p10_ns) / self.median_ns


class Visit(NamedTuple):
    """The repeats of one visit to a point."""

    ns: F64  # [repeats] calm ones, in order
    start_s: float  # by the clock of the measurement
    end_s: float
    kernel: str


class Clock(Protocol):
    """Time in s from any fixed moment."""

    def __call__(self) -> float:
        """Now."""


def visit(timer: Timer, clock: Clock, aim_s: float) -> Visit:
    """Repeat for about `aim_s`, at least LEAST_REPEATS times and at most MOST_REPEATS."""
    start_s = clock()
    repeats: list[Repeat] = []
    while len(repeats) < MOST_REPEATS:
        spent_s = clock() - start_s
        if len(repeats) >= LEAST_REPEATS and spent_s >= min(aim_s, LONGEST_S):
            break
        repeats.append(timer.repeat())
    return Visit(believed(repeats), start_s, clock(), timer.kernel)


def believed(repeats: list[Repeat]) -> F64:
    """The times of repeats that no disturbance came shortly before; of all calm ones, or all, where those are few."""
    ns = np.array([repeat.ns for repeat in repeats])
    calm = np.array([repeat.calm for repeat in repeats])
    settled = calm.copy()
    for shift in range(1, SETTLING + 1):
        settled[shift:] &= calm[:-shift]
    chosen = next((choice for choice in (settled, calm) if choice.sum() >= LEAST_BELIEVED), np.ones(len(ns), bool))
    found: F64 = ns[chosen]
    return found


def timing_of(visits: list[Visit]) -> Timing:
    """The repeats of a point's visits together; each visit counts alike, however many repeats it has."""
    ns = np.concatenate([visit.ns for visit in visits])
    weight = np.concatenate([np.full(len(visit.ns), 1.0 / len(visit.ns)) for visit in visits])
    p10, median, p90 = (_weighted_quantile(ns, weight, level) for level in (0.1, 0.5, 0.9))
    return Timing(median, min(p10, median), max(p90, median), len(ns), visits[-1].kernel)


def _weighted_quantile(values: F64, weight: F64, level: float) -> float:
    """The quantile of a weighted sample, linear between the middles of the weights (`hazen` if all are alike)."""
    order = np.argsort(values)
    reached = np.cumsum(weight[order]) - weight[order] / 2.0
    return float(np.interp(level * weight.sum(), reached, values[order]))
