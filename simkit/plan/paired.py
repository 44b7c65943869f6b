"""Two or more deployments on the same traffic, request by request: differences with intervals, and which is cheaper.

Every replication draws one workload for all (common random numbers), so that what they have in common cancels: a
difference is known far better than the figures themselves, and equal deployments differ by exactly 0. Step times are in
doubt in the same way for deployments on the same device, and independently for others. A deployment has one true step
time, whatever the traffic, so no number of replications narrows what that doubt does to a price.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.intervals import UNKNOWN, Interval, around, next_interval, recorded_interval, share_interval
from simkit.metrics.slo import Promise
from simkit.plan.confidence import StepTimeError, factors
from simkit.plan.fleet import replay_share
from simkit.plan.knee import find_knee
from simkit.plan.observation import Observation
from simkit.workloads.workload import Workload


@dataclass(frozen=True)
class Contender:
    """One deployment."""

    name: str
    spec: ReplicaSpec
    replicas: int
    gpus: int  # of one replica
    usd_per_gpu_hour: float
    draw: Callable[[int], Workload]  # replication -> traffic
    rate_per_s: float
    error: StepTimeError
    recorded: bool = False  # `draw` has one recording as replication 0, and bootstrap samples of it; else other seeds

    @property
    def usd_per_hour(self) -> float:
        """Of all replicas."""
        return self.replicas * self.gpus * self.usd_per_gpu_hour


@dataclass(frozen=True)
class Run:
    """One contender in one replication."""

    planned: Observation  # with step times as assumed
    held_per_s: float | None  # with step times in doubt; None: no rate holds, or nothing is promised
    usd_per_million_requests: float  # at that rate; inf if none holds; at the workload's rate if nothing is promised


@dataclass(frozen=True)
class Difference:
    """A contender against the first."""

    name: str
    against: str
    figures: Mapping[str, Interval]  # key -> other - first; all NaN where a queue grew in one of them
    usd_per_hour: float
    usd_per_million_requests: Interval  # where it would be found, step times in doubt; not of a mean
    cheaper: Interval  # probability that it is cheaper a request than the first
    dearer: Interval
    same: bool  # every figure of every replication is the same to the last bit


@dataclass(frozen=True)
class Comparison:
    """All contenders, the first one first."""

    names: tuple[str, ...]
    figures: tuple[Mapping[str, Interval], ...]  # of each
    usd_per_hour: tuple[float, ...]
    usd_per_million_requests: tuple[float, ...]  # median
    turned_away: tuple[float, ...]  # share of the requests of all replications, whose latencies are in no figure
    not_finished: tuple[float, ...]  # the same, of those that began and did not end
    differences: tuple[Difference, ...]
    replications: int


def compare(
    contenders: Sequence[Contender],
    promise: Promise,
    replications: int,
    on_replication: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Run all contenders on the traffic of each replication."""
    seeds = _device_seeds(contenders)
    scales = [factors(c.error.spread, replications, seed) for c, seed in zip(contenders, seeds, strict=True)]
    runs: list[list[Run]] = [[] for _ in contenders]
    for number in range(replications):
        for contender, own, done in zip(contenders, scales, runs, strict=True):
            guess = next((run.held_per_s for run in reversed(done) if run.held_per_s is not None), None)
            done.append(_run(contender, promise, number, own[number], guess))
        on_replication(number + 1)
    return Comparison(
        names=tuple(c.name for c in contenders),
        figures=tuple(
            _figures([run.planned for run in done], c.recorded) for c, done in zip(contenders, runs, strict=True)
        ),
        usd_per_hour=tuple(c.usd_per_hour for c in contenders),
        usd_per_million_requests=tuple(float(np.median([r.usd_per_million_requests for r in done])) for done in runs),
        turned_away=tuple(_share([run.planned.rejected for run in done], done) for done in runs),
        not_finished=tuple(_share([run.planned.given_up for run in done], done) for done in runs),
        differences=tuple(
            _difference(contenders[0], contender, runs[0], done)
            for contender, done in zip(contenders[1:], runs[1:], strict=True)
        ),
        replications=replications,
    )


def _device_seeds(contenders: Sequence[Contender]) -> list[int]:
    """The same seed for contenders whose step times err together."""
    known: dict[tuple[str, str], int] = {}
    return [known.setdefault((c.spec.device.name, c.spec.provenance), len(known)) for c in contenders]


def _run(contender: Contender, promise: Promise, number: int, factor: float, guess: float | None) -> Run:
    c = contender
    traffic = c.draw(number)
    planned = replay_share(c.spec, traffic, c.replicas, c.rate_per_s, promise)
    if not promise:
        return Run(planned, None, 1e6 * c.usd_per_hour / 3600 / c.rate_per_s)
    # equal contenders have equal guesses, so they search alike
    held = find_knee(c.spec, traffic, c.replicas, promise, guess, factor).rate_per_s
    return Run(planned, held, math.inf if held is None else 1e6 * c.usd_per_hour / 3600 / held)


def _share(counts: Sequence[int], runs: Sequence[Run]) -> float:
    return sum(counts) / max(1, sum(run.planned.requests for run in runs))


def _figures(seen: Sequence[Observation], recorded: bool) -> dict[str, Interval]:
    if any(one.saturated for one in seen):
        return dict.fromkeys(seen[0].figures, UNKNOWN)
    return {key: _long_run([one.figures[key] for one in seen], recorded) for key in seen[0].figures}


def _difference(first: Contender, other: Contender, before: Sequence[Run], behind: Sequence[Run]) -> Difference:
    pairs = list(zip(before, behind, strict=True))
    prices = [_gap(b.usd_per_million_requests, a.usd_per_million_requests) for a, b in pairs]
    keys, recorded = before[0].planned.figures, first.recorded or other.recorded
    grows = any(run.planned.saturated for pair in pairs for run in pair)
    figures = {
        key: UNKNOWN
        if grows
        else _long_run([_gap(b.planned.figures[key], a.planned.figures[key]) for a, b in pairs], recorded)
        for key in keys
    }
    return Difference(
        name=other.name,
        against=first.name,
        figures=figures,
        usd_per_hour=other.usd_per_hour - first.usd_per_hour,
        usd_per_million_requests=next_interval(prices),
        cheaper=share_interval(sum(gap < 0 for gap in prices), len(prices)),
        dearer=share_interval(sum(gap > 0 for gap in prices), len(prices)),
        same=all(_alike(a.planned, b.planned) and a.held_per_s == b.held_per_s for a, b in pairs),
    )


def _alike(one: Observation, other: Observation) -> bool:
    """Whether two observations are the same; a figure that neither has (TPOT of one-token answers) is no difference."""
    alike = all(_gap(one.figures[key], other.figures[key]) == 0.0 for key in one.figures)
    return alike and replace(one, figures={}) == replace(other, figures={})


def _gap(value: float, before: float) -> float:
    """value - before, 0 for two equal infinities or two that do not exist: neither is more than the other."""
    if value == before or (math.isnan(value) and math.isnan(before)):
        return 0.0
    return value - before


def _long_run(values: Sequence[float], recorded: bool) -> Interval:
    """Of what each replication found; of a recording the first is its own, the others are its samples'."""
    if recorded:
        return recorded_interval(values[0], values[1:], positive=False)
    return around(float(np.mean(values)), values) if all(map(math.isfinite, values)) else UNKNOWN
