"""The highest load that one replica holds within its latency targets, found by bisection over replays."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.metrics.load import LoadPoint
from simkit.metrics.result import RunResult, Status
from simkit.metrics.saturation import saturation
from simkit.metrics.slo import ATTAINMENT, promise
from simkit.metrics.summary import summarize
from simkit.plan.observation import REJECTED
from simkit.plan.sweep import load_point, mean_rate, replay
from simkit.workloads.workload import Workload

LOWEST_SHARE = 1.0 / 64.0  # of the throughput bound: where the search gives up looking for a load that holds
PRECISION = 0.01  # relative: the load found holds, one this much higher does not


@dataclass(frozen=True)
class Probe:
    """One replay on the way to the answer."""

    point: LoadPoint
    holds: bool
    missed: tuple[str, ...]  # what it failed: keys of the targets, or "saturated", "unfinished", "rejected"
    measured: Mapping[str, float]  # keys of the promise -> measured: s, a share, or requests/s


@dataclass(frozen=True)
class Capacity:
    """The answer for one workload and one set of step times."""

    rate_per_s: float | None  # None: no load that was tried holds
    binding: str  # the first target that fails just above it
    bound_per_s: float  # throughput with all requests at hand: no rate above it can last
    probes: tuple[Probe, ...]  # in order of load

    @property
    def at_capacity(self) -> Probe | None:
        """The replay at the rate found."""
        held = [probe for probe in self.probes if probe.holds]
        return held[-1] if held and self.rate_per_s is not None else None


def throughput_bound(spec: ReplicaSpec, workload: Workload) -> float:
    """Requests a second that the replica serves when all of the workload is there from the start.

    Batches are as large as they get then, so no arrival process makes it faster (but for prefix hits, which live from
    the order and distance of requests).
    """
    at_once = replace(workload, arrival_us=np.zeros_like(workload.arrival_us))
    result = replay(spec, at_once)
    finished = int(np.count_nonzero(result.requests.status == Status.FINISHED))
    if finished == 0 or result.end_ns == 0:
        raise InputError(
            f"workload {workload.name}: every request is longer than max_model_len={spec.limits.max_model_len}; "
            "raise deployment.engine.max_model_len or choose other lengths"
        )
    return finished / (result.end_ns / 1e9)


def find_capacity(
    spec: ReplicaSpec,
    workload: Workload,
    slo: Mapping[str, float],
    step_time_factor: float = 1.0,
    on_probe: Callable[[Probe], None] | None = None,
    guess_per_s: float | None = None,
) -> Capacity:
    """The highest rate at which every target holds and the queue does not grow, to within 1 %.

    The workload's requests come in their own order with all gaps scaled; latencies are taken to rise with the load.
    A `guess_per_s`, the answer to a like question, saves replays. Where requests are longer than the context no rate
    holds, for a promise is made to all: one replay shows what becomes of the others.
    Raises InputError if there is no target or no span of time to scale.
    """
    if not promise(slo):
        raise InputError("slo: no target given; for instance --slo ttft_p99=1 --slo tpot_p99=0.05 (seconds)")
    if promise(slo).goodput_per_s is not None:
        raise InputError("slo: goodput_per_s needs a rate to be had at: ask for a fleet, for instance with --demand 20")
    own_rate = mean_rate(workload)
    if math.isnan(own_rate):
        raise InputError(f"workload {workload.name}: all requests arrive at once, so its rate cannot be changed")
    bound = throughput_bound(spec, workload) / step_time_factor
    probes: dict[float, Probe] = {}

    def holds(rate: float) -> bool:
        result = replay(spec, workload, rate / own_rate, step_time_factor)
        probes[rate] = probe_of(result, rate / own_rate, rate, slo)
        if on_probe is not None:
            on_probe(probes[rate])
        return probes[rate].holds

    if longer_than_context(spec, workload):
        holds(LOWEST_SHARE * bound)
        return Capacity(None, REJECTED, bound, tuple(probes.values()))
    low, high = _bracket(bound, guess_per_s, holds)
    if low < LOWEST_SHARE * bound:
        ordered = tuple(probes[rate] for rate in sorted(probes))
        return Capacity(None, ordered[0].missed[0], bound, ordered)
    while high / low > 1 + PRECISION:
        middle = math.sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    ordered = tuple(probes[rate] for rate in sorted(probes))
    above = next((probe for probe in ordered if probe.point.rate_per_s > low), None)
    return Capacity(low, above.missed[0] if above else "saturated", bound, ordered)


def longer_than_context(spec: ReplicaSpec, workload: Workload) -> bool:
    """Whether there is a request whose prompt and answer together do not fit, which is turned away at any rate."""
    longest = (workload.prompt_tokens.astype(np.int64) + workload.output_tokens).max(initial=0)
    return int(longest) > spec.limits.max_model_len


def _bracket(bound: float, guess: float | None, holds: Callable[[float], bool]) -> tuple[float, float]:
    """(a rate that holds, one that does not); the first is below LOWEST_SHARE of the bound if none was found."""
    # a finite replay ends, so a rate somewhat above the bound may pass the test for a growing queue
    ceiling = 1.25 * bound
    width = 2.0 if guess is None else 1.1
    rate = ceiling / 2 if guess is None else min(guess, ceiling)
    if holds(rate):
        while rate * width < ceiling and holds(rate * width):
            rate *= width
        return rate, min(rate * width, ceiling)
    while rate / width >= LOWEST_SHARE * bound:
        if holds(rate / width):
            return rate / width, rate
        rate /= width
    return rate / width, rate


def probe_of(result: RunResult, load: float, rate: float, slo: Mapping[str, float]) -> Probe:
    """Judge one replay."""
    point = load_point(result, load, rate, slo)
    summary = summarize(result, slo)
    latency = summary["latency_of_this_run_s"]
    assert isinstance(latency, dict)
    missed: list[str] = []
    measured: dict[str, float] = {}
    promised = promise(slo)
    for target in promised.targets:
        value = latency[target.metric][target.statistic]
        # TPOT of a workload whose answers are one token each does not exist, and cannot be missed
        measured[target.key] = math.nan if value is None else value
        if value is not None and value > target.limit_s:
            missed.append(target.key)
    if promised.attainment is not None:
        # of all that arrive, so that a rejected request is none of the good ones
        measured[ATTAINMENT] = point.goodput_fraction
        if point.goodput_fraction < promised.attainment:
            missed.append(ATTAINMENT)
    if saturation(result.requests).saturated:
        missed.append("saturated")
    if np.any(result.requests.status == Status.UNFINISHED):
        missed.append("unfinished")
    if np.any(result.requests.status == Status.REJECTED):
        missed.append(REJECTED)
    return Probe(point, not missed, tuple(missed), measured)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, lowest, highest)."""
    return float(np.median(values)), min(values), max(values)
