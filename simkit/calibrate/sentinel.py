"""Sentinels: one known operator timed again and again between the points, to tell when the device itself changed.

The pace of a moment is the sentinel's time then over its time in good moments: 1.00, and 1.04 where everything takes
4 % longer (clocks, heat, a neighbour). Points visited while the pace was off are visited again.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import numpy as np

GOOD_LEVEL = 0.25  # quantile of the sentinel's times that stands for good moments


class Reading(NamedTuple):
    """The sentinel, timed once."""

    at_s: float
    ns: float


class SentinelSummary(NamedTuple):
    """How steady the device was."""

    readings: int
    good_ns: float
    spread: float  # (p90 - p10) / median
    drift: float  # the last third's median over the first third's, less 1


def pace(readings: list[Reading], start_s: float, end_s: float) -> float:
    """The worse of the paces just before and just after a span; 1.0 without readings."""
    if not readings:
        return 1.0
    first_after = bisect_left(readings, end_s, key=lambda reading: reading.at_s)
    last_before = bisect_right(readings, start_s, key=lambda reading: reading.at_s) - 1
    near = readings[max(last_before, 0) : last_before + 1] + readings[first_after : first_after + 1]
    good = good_ns(readings)
    return max([reading.ns for reading in near], default=good) / good


def good_ns(readings: list[Reading]) -> float:
    """The sentinel's time in good moments."""
    return float(np.quantile([reading.ns for reading in readings], GOOD_LEVEL))


def summary(readings: list[Reading]) -> SentinelSummary:
    """Of one or more readings, in order of time."""
    ns = np.array([reading.ns for reading in readings])
    third = max(1, len(ns) // 3)
    p10, p90 = np.quantile(ns, [0.1, 0.9])
    return SentinelSummary(
        readings=len(ns),
        good_ns=good_ns(readings),
        spread=float((p90 - p10) / np.median(ns)),
        drift=float(np.median(ns[-third:]) / np.median(ns[:third]) - 1.0),
    )
