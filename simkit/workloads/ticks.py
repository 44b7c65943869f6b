"""Arrival times that a trace rounded to coarse ticks: finding the tick, and undoing the burst it makes."""

import numpy as np

from simkit.workloads.workload import I64

MIN_TICK_US = 100_000  # finer rounding makes no burst that a step of 10 to 100 ms would notice
MIN_TIMES = 10  # fewer distinct times are in step by chance
JITTER = 0.01  # Mooncake's conversation trace has gaps of 2,997 to 3,003 ms for its tick of 3 s


def tick_of(arrival_us: I64) -> int:
    """The quantum of sorted arrival times in us; 1 when they show none.

    Times are taken to come in ticks when all gaps between distinct ones are multiples of the median gap, to 1 % of it.
    """
    gaps = np.diff(arrival_us)
    gaps = gaps[gaps > 0]
    if len(gaps) < MIN_TIMES - 1:
        return 1
    tick = float(np.median(gaps))
    if tick < MIN_TICK_US or len(gaps) + 1 == len(arrival_us):
        return 1
    whole = np.maximum(np.rint(gaps / tick), 1)
    return round(tick) if bool((np.abs(gaps - whole * tick) <= JITTER * tick * whole).all()) else 1


def spread(arrival_us: I64, tick_us: int, rng: np.random.Generator) -> I64:
    """Sorted arrival times with each moved uniformly within its tick.

    The draws are sorted, so rows keep their order: an order statistic of uniforms is what a Poisson stream shows.
    """
    return np.sort(arrival_us + rng.integers(0, tick_us, len(arrival_us)))
