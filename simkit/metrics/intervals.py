"""Confidence intervals of means and percentiles whose samples depend on each other, from independent replications.

Latencies of neighbouring requests are correlated, so the usual formulas of independent samples give intervals that are
several times too narrow. Replications are independent of each other, whatever happens inside them: Student's t over
their means, and for a percentile sectioning: centred at the percentile of all samples together, which is less biased
than the mean of the replications' own (Asmussen and Glynn, Stochastic Simulation, 2007, III.5a and IV.5).
Bootstrap samples of one recording are no independent replications: `recorded_interval`. What replications do not
average out, such as a doubt about all step times of a deployment: `next_interval`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simkit.metrics.result import F64

LEVEL = 0.95
# Student's t, two-sided 95 %, by degrees of freedom 1 to 30 (any table; NIST/SEMATECH e-Handbook 1.3.6.7.2)
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Interval(NamedTuple):
    """A figure and the 95 % interval around it; all NaN where it cannot be told."""

    low: float
    value: float
    high: float

    def holds(self, truth: float) -> bool:
        """Whether a value lies inside."""
        return self.low <= truth <= self.high


UNKNOWN = Interval(math.nan, math.nan, math.nan)


def student_t95(degrees: int) -> float:
    """The two-sided 95 % point of Student's t; beyond 30 degrees by Cornish and Fisher's first terms."""
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def around(value: float, replicated: Sequence[float]) -> Interval:
    """The interval around `value` by what each of two or more replications found."""
    found = np.array(replicated, dtype=np.float64)
    if len(found) < 2 or not np.all(np.isfinite(found)) or not math.isfinite(value):
        return UNKNOWN
    spread = math.sqrt(float(((found - value) ** 2).sum()) / (len(found) - 1))
    half = student_t95(len(found) - 1) * spread / math.sqrt(len(found))
    return Interval(value - half, value, value + half)


def mean_interval(replications: Sequence[F64]) -> Interval:
    """Of the mean; each replication's samples weigh by their replication."""
    means = [float(samples.mean()) for samples in replications if len(samples)]
    return around(float(np.mean(means)) if means else math.nan, means)


def quantile_interval(replications: Sequence[F64], q: float) -> Interval:
    """Of the q-quantile, by sectioning."""
    filled = [samples for samples in replications if len(samples)]
    if not filled:
        return UNKNOWN
    return around(float(np.quantile(np.concatenate(filled), q)), [float(np.quantile(s, q)) for s in filled])


def recorded_interval(value: float, resampled: Sequence[float], *, positive: bool) -> Interval:
    """Of a figure's long-run value, from that of one recording and those of two or more bootstrap samples of it.

    Samples scatter around the recording as recordings do around the truth, so more of them tell that scatter better but
    not the truth: it is not divided by their number (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    13.3).
    `positive`: taken on the scale of the logarithm, on which latencies are less skewed; all must be above 0 for that.
    """
    found = np.array([value, *resampled], dtype=np.float64)
    if len(found) < 3 or not np.all(np.isfinite(found)):
        return UNKNOWN
    logs = positive and bool(np.all(found > 0))
    scaled = np.log(found) if logs else found
    half = student_t95(len(found) - 2) * float(scaled[1:].std(ddof=1))
    low, high = float(scaled[0]) - half, float(scaled[0]) + half
    return Interval(math.exp(low), value, math.exp(high)) if logs else Interval(low, value, high)


def next_interval(replicated: Sequence[float]) -> Interval:
    """Where one more replication would find the figure, around the mean of two or more (a prediction interval).

    More replications tell its middle and its scatter better, but do not narrow it below that scatter: t s sqrt(1 + 1/n)
    on either side (Hahn and Meeker, Statistical Intervals, 1991, 4.7).
    """
    found = np.array(replicated, dtype=np.float64)
    if len(found) < 2 or not np.all(np.isfinite(found)):
        return UNKNOWN
    value = float(found.mean())
    half = student_t95(len(found) - 1) * float(found.std(ddof=1)) * math.sqrt(1 + 1 / len(found))
    return Interval(value - half, value, value + half)


def share_interval(successes: int, trials: int) -> Interval:
    """Of a probability, from independent trials: Wilson's score interval (1927), right down to 0 and up to 1."""
    if trials == 0:
        return UNKNOWN
    z = 1.959964
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return Interval(max(0.0, middle - half), share, min(1.0, middle + half))
