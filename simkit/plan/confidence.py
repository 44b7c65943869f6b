"""How sure an answer is: intervals from replications, and the probability that the promise is kept.

Two kinds of doubt. Another day's traffic: each replication draws the workload anew (another seed, or a block bootstrap
of a trace), and the interval of a figure is that of its long-run value. The step times themselves: each replication
multiplies all steps by one factor, log-normal with the spread of the calibration's held-out error, for such an error
does not average out over a run; what comes out is where the figure would be found.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.intervals import UNKNOWN, Interval, around, mean_interval, quantile_interval, share_interval
from simkit.metrics.latency import Latencies
from simkit.metrics.result import F64
from simkit.metrics.slo import GOODPUT, Promise, quantile
from simkit.models.roofline import PROVENANCE
from simkit.plan.fleet import replay_share, share_and_latencies
from simkit.plan.observation import Observation, parsed
from simkit.plan.traffic import resampled
from simkit.workloads.streams import stream
from simkit.workloads.workload import Workload

REPLICATIONS = 20
# where no profile states its held-out error. A roofline's label says to expect 10 to 30 %, taken as 15 % for one
# standard deviation; laws from kernel tables are taken at half of that (docs/validate.md has their errors on real runs)
SPREADS = {PROVENANCE: 0.15}
SPREAD_OF_LAWS = 0.08


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


def step_time_error(spec: ReplicaSpec, stated: float | None = None) -> StepTimeError:
    """The spread that a user states, else what is assumed of step times of this provenance."""
    if stated is not None:
        return StepTimeError(stated, "as stated")
    spread = SPREADS.get(spec.provenance, SPREAD_OF_LAWS)
    return StepTimeError(spread, f"assumed for {spec.provenance} step times")


def redrawn(workload: Workload, draw: Callable[[int], Workload] | None, number: int) -> Workload:
    """The workload of a replication: `draw` with another seed where one is drawn, a bootstrap of a trace."""
    return draw(number) if draw is not None else resampled(workload, number)


def factors(spread: float, count: int, seed: int = 0) -> list[float]:
    """`count` log-normal factors at even quantiles, in random order."""
    normal = NormalDist()
    quantiles = [math.exp(spread * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    return [quantiles[i] for i in stream(seed).permutation(count).tolist()]


def confidence(
    spec: ReplicaSpec,
    workload: Workload,
    replicas: int,
    rate_per_s: float,
    promise: Promise,
    error: StepTimeError,
    draw: Callable[[int], Workload] | None = None,
    replications: int = REPLICATIONS,
) -> Confidence:
    """Replay a fleet `replications` times with step times as assumed, and as often with step times in doubt."""
    exact: list[tuple[Observation, Latencies]] = []
    doubted: list[Observation] = []
    for number, factor in enumerate(factors(error.spread, replications)):
        other = redrawn(workload, draw, number + 1)
        exact.append(share_and_latencies(spec, other, replicas, rate_per_s, promise))
        doubted.append(replay_share(spec, other, replicas, rate_per_s, promise, step_time_factor=factor))
    return Confidence(
        sampling=long_run(exact),
        together=spread_of(doubted),
        kept=share_interval(sum(one.holds for one in doubted), replications),
        kept_as_assumed=share_interval(sum(one.holds for one, _ in exact), replications),
        grows=sum(one.saturated for one in doubted) / replications,
        error=error,
        replications=replications,
    )


def kept_probability(
    spec: ReplicaSpec,
    workload: Workload,
    replicas: int,
    rate_per_s: float,
    promise: Promise,
    error: StepTimeError,
    draw: Callable[[int], Workload] | None = None,
    replications: int = REPLICATIONS,
) -> Interval:
    """The probability that the whole promise is kept, on the same traffic and step times as `confidence`."""
    kept = 0
    for number, factor in enumerate(factors(error.spread, replications)):
        other = redrawn(workload, draw, number + 1)
        kept += replay_share(spec, other, replicas, rate_per_s, promise, step_time_factor=factor).holds
    return share_interval(kept, replications)


def long_run(seen: list[tuple[Observation, Latencies]]) -> dict[str, Interval]:
    """The interval of each figure's long-run value; unknown if a queue grew, for then there is no such value."""
    keys = seen[0][0].figures
    if any(one.saturated for one, _ in seen):
        return dict.fromkeys(keys, UNKNOWN)
    return {key: _long_run(key, seen) for key in keys}


def _long_run(key: str, seen: list[tuple[Observation, Latencies]]) -> Interval:
    metric, statistic = parsed(key) if key.endswith("_s") and key != GOODPUT else ("", "")
    q = quantile(statistic)
    if metric in ("", "itl") or (q is None and statistic != "mean"):
        values = [one.figures[key] for one, _ in seen]
        return around(float(np.mean(values)), values)
    samples: list[F64] = [getattr(latencies, f"{metric}_s") for _, latencies in seen]
    samples = [values[~np.isnan(values)] for values in samples]
    return mean_interval(samples) if q is None else quantile_interval(samples, q)


def spread_of(seen: list[Observation]) -> dict[str, Interval]:
    """The middle 95 % of each figure over replications; a growing queue counts as beyond all others.

    Its upper end is infinite if that many grow.
    """
    found: dict[str, Interval] = {}
    for key in seen[0].figures:
        better_high = not key.endswith("_s") or key == GOODPUT
        beyond = -math.inf if better_high else math.inf
        values = np.array([beyond if one.saturated else one.figures[key] for one in seen])
        if np.isnan(values).any():
            found[key] = UNKNOWN
            continue
        low, middle, high = np.quantile(values, [0.025, 0.5, 0.975], method="nearest").tolist()
        found[key] = Interval(low, middle, high)
    return found
