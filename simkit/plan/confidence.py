"""How sure an answer is: intervals from replications, and the probability that the promise is kept.

Two kinds of doubt. Another day's traffic: each replication draws the workload anew (another seed, or a bootstrap of a
trace), and the interval of a figure is that of its long-run value: where seeds are drawn around what all of them found,
narrower the more there are; of a trace around its own figure, as wide as its samples scatter. The step times
themselves: each replication multiplies all steps by one factor, log-normal with the spread of the calibration's
held-out error, for such an error does not average out over a run; what comes out is where the figure would be found.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from simkit.metrics.intervals import (
    UNKNOWN,
    Interval,
    around,
    mean_interval,
    quantile_interval,
    recorded_interval,
    share_interval,
)
from simkit.metrics.latency import Latencies
from simkit.metrics.result import F64
from simkit.metrics.slo import ATTAINMENT, GOODPUT, Promise, quantile
from simkit.plan.fleet import replay_share, share_and_latencies
from simkit.plan.observation import Observation, parsed
from simkit.plan.parallel import ALONE, Workers, over
from simkit.plan.traffic import resampled
from simkit.plan.unit import Unit
from simkit.workloads.streams import stream
from simkit.workloads.workload import Workload

REPLICATIONS = 20
SPREAD_OF_ROOFLINE = 0.15  # its label says to expect errors of 10 to 30 %


@dataclass(frozen=True)
class StepTimeError:
    """The spread of ln(true / assumed) of a deployment's step times as a whole."""

    spread: float
    source: str


@dataclass(frozen=True)
class Confidence:
    """Of one fleet at one rate. Intervals are of 95 %."""

    sampling: Mapping[str, Interval]  # of the long-run figures, were the step times exact
    together: Mapping[str, Interval]  # where a figure would be found; the middle is the median
    kept: Interval  # probability that the whole promise is kept
    kept_as_assumed: Interval  # the same, were the step times exact
    grows: float  # share of the replications whose queue grows: their latencies are no steady state's
    error: StepTimeError
    replications: int


def redrawn(workload: Workload, draw: Callable[[int], Workload] | None, number: int) -> Workload:
    """The workload of a replication: `draw` with another seed where one is drawn, a bootstrap of a trace."""
    return draw(number) if draw is not None else resampled(workload, number)


def factors(spread: float, count: int, seed: int = 0) -> list[float]:
    """`count` log-normal factors at even quantiles, in random order."""
    normal = NormalDist()
    quantiles = [math.exp(spread * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    return [quantiles[i] for i in stream(seed).permutation(count).tolist()]


def confidence(
    spec: Unit,
    workload: Workload,
    replicas: int,
    rate_per_s: float,
    promise: Promise,
    error: StepTimeError,
    draw: Callable[[int], Workload] | None = None,
    replications: int = REPLICATIONS,
    workers: Workers = ALONE,
) -> Confidence:
    """Replay a fleet `replications` times with step times as assumed, and as often with step times in doubt."""
    days = list(enumerate(factors(error.spread, replications), start=1))
    asked = partial(_both, fleet=Fleet(spec, workload, replicas, rate_per_s, promise, draw))
    both = list(over(asked, days, workers))
    exact, doubted = [one for one, _ in both], [other for _, other in both]
    if draw is None:
        sampling = of_recording(replay_share(spec, workload, replicas, rate_per_s, promise), [one for one, _ in exact])
    else:
        sampling = long_run(exact)
    return Confidence(
        sampling=sampling,
        together=spread_of(doubted),
        kept=share_interval(sum(one.holds for one in doubted), replications),
        kept_as_assumed=share_interval(sum(one.holds for one, _ in exact), replications),
        grows=sum(one.saturated for one in doubted) / replications,
        error=error,
        replications=replications,
    )


def kept_probability(
    spec: Unit,
    workload: Workload,
    replicas: int,
    rate_per_s: float,
    promise: Promise,
    error: StepTimeError,
    draw: Callable[[int], Workload] | None = None,
    replications: int = REPLICATIONS,
    workers: Workers = ALONE,
) -> Interval:
    """The probability that the whole promise is kept, on the same traffic and step times as `confidence`."""
    days = list(enumerate(factors(error.spread, replications), start=1))
    asked = partial(_doubted, fleet=Fleet(spec, workload, replicas, rate_per_s, promise, draw))
    return share_interval(sum(one.holds for one in over(asked, days, workers)), replications)


class Fleet(NamedTuple):
    """What is replayed on every day."""

    unit: Unit
    workload: Workload
    units: int
    rate_per_s: float
    promise: Promise
    draw: Callable[[int], Workload] | None


def _both(day: tuple[int, float], fleet: Fleet) -> tuple[tuple[Observation, Latencies], Observation]:
    """A day (number, step-time factor) with step times as assumed, and with the factor."""
    other = redrawn(fleet.workload, fleet.draw, day[0])
    asked = (fleet.unit, other, fleet.units, fleet.rate_per_s, fleet.promise)
    return share_and_latencies(*asked), replay_share(*asked, step_time_factor=day[1])


def _doubted(day: tuple[int, float], fleet: Fleet) -> Observation:
    other = redrawn(fleet.workload, fleet.draw, day[0])
    return replay_share(fleet.unit, other, fleet.units, fleet.rate_per_s, fleet.promise, step_time_factor=day[1])


def long_run(seen: list[tuple[Observation, Latencies]]) -> dict[str, Interval]:
    """The interval of each figure's long-run value; unknown if a queue grew, for then there is no such value."""
    keys = seen[0][0].figures
    if any(one.saturated for one, _ in seen):
        return dict.fromkeys(keys, UNKNOWN)
    return {key: _long_run(key, seen) for key in keys}


def _long_run(key: str, seen: list[tuple[Observation, Latencies]]) -> Interval:
    metric, statistic = parsed(key) if _is_latency(key) else ("", "")
    q = quantile(statistic)
    if metric in ("", "itl") or (q is None and statistic != "mean"):
        values = [one.figures[key] for one, _ in seen]
        return around(float(np.mean(values)), values)
    samples: list[F64] = [getattr(latencies, f"{metric}_s") for _, latencies in seen]
    samples = [values[~np.isnan(values)] for values in samples]
    return mean_interval(samples) if q is None else quantile_interval(samples, q)


def of_recording(own: Observation, seen: Sequence[Observation]) -> dict[str, Interval]:
    """The interval of each figure's long-run value, from a trace's own and bootstrap samples' of it.

    Unknown if a queue grew in any of them.
    """
    if own.saturated or any(one.saturated for one in seen):
        return dict.fromkeys(own.figures, UNKNOWN)
    found = {
        key: recorded_interval(value, [one.figures[key] for one in seen], positive=_is_latency(key))
        for key, value in own.figures.items()
    }
    low, value, high = found[ATTAINMENT]
    return found | {ATTAINMENT: Interval(max(low, 0.0), value, min(high, 1.0))}


def _is_latency(key: str) -> bool:
    return key.endswith("_s") and key != GOODPUT


def spread_of(seen: list[Observation]) -> dict[str, Interval]:
    """The middle 95 % of each figure over replications; a growing queue counts as beyond all others.

    Its upper end is infinite if that many grow.
    """
    found: dict[str, Interval] = {}
    for key in seen[0].figures:
        better_high = not _is_latency(key)
        beyond = -math.inf if better_high else math.inf
        values = np.array([beyond if one.saturated else one.figures[key] for one in seen])
        if np.isnan(values).any():
            found[key] = UNKNOWN
            continue
        low, middle, high = np.quantile(values, [0.025, 0.5, 0.975], method="nearest").tolist()
        found[key] = Interval(low, middle, high)
    return found
