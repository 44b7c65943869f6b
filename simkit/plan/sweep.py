"""The same workload at other rates, and with other step times."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from simkit.engine.deployment import ReplicaSpec
from simkit.engine.simulate import simulate
from simkit.errors import InputError
from simkit.metrics.front_end import with_front_end
from simkit.metrics.latency import finished_latencies
from simkit.metrics.load import LoadPoint
from simkit.metrics.result import RunResult
from simkit.metrics.saturation import saturation
from simkit.metrics.slo import promise
from simkit.metrics.summary import goodput, statistics
from simkit.models.steptables import StepTables, scaled
from simkit.workloads.transform import time_scale
from simkit.workloads.workload import Workload


def replay(
    spec: ReplicaSpec,
    workload: Workload,
    load: float = 1.0,
    step_time_factor: float = 1.0,
    on_progress: Callable[[int], None] | None = None,
    keep_partial: bool = False,
) -> RunResult:
    """The workload on one replica, seen by its clients, with all gaps between arrivals divided by `load`.

    An interrupted replay says nothing about its load: KeyboardInterrupt is raised on, unless `keep_partial`.
    """
    tables: StepTables = spec.tables if step_time_factor == 1.0 else scaled(spec.tables, step_time_factor)
    scaled_workload = workload if load == 1.0 else time_scale(workload, 1.0 / load)
    engine = spec.deployment.engine
    result = simulate(
        scaled_workload,
        spec.limits,
        tables,
        spec.num_blocks,
        on_progress,
        engine.discipline,
        engine.predictor,
        engine.max_tokens,
    )
    if not result.complete and not keep_partial:
        raise KeyboardInterrupt
    return replace(result, requests=with_front_end(result.requests, spec.front_end.ns(workload.prompt_tokens)))


def mean_rate(workload: Workload) -> float:
    """Requests a second over the workload's span; NaN if it has none."""
    span_us = int(workload.arrival_us[-1] - workload.arrival_us[0])
    return (len(workload) - 1) / (span_us / 1e6) if span_us > 0 else math.nan


def own_rate(workload: Workload) -> float:
    """`mean_rate` of a workload that has one; InputError for a single request, or all at one moment."""
    rate = mean_rate(workload)
    if math.isnan(rate):
        raise InputError(
            f"workload {workload.name}: all requests arrive at once, so it has no rate; draw times for them, for "
            "instance with workload.arrivals=poisson and workload.rate=1"
        )
    return rate


def load_point(result: RunResult, load: float, rate_per_s: float, slo: Mapping[str, float]) -> LoadPoint:
    """What one replay says about its load."""
    latencies = finished_latencies(result.requests)
    ttft, tpot, e2e = (statistics(values) for values in (latencies.ttft_s, latencies.tpot_s, latencies.e2e_s))

    def known(value: float | None) -> float:
        return math.nan if value is None else value

    fraction = goodput(result, latencies, promise(slo).limits)["fraction"]
    assert isinstance(fraction, float)
    return LoadPoint(
        load=load,
        rate_per_s=rate_per_s,
        ttft_p50_s=known(ttft["p50"]),
        ttft_p99_s=known(ttft["p99"]),
        tpot_p50_s=known(tpot["p50"]),
        tpot_p99_s=known(tpot["p99"]),
        e2e_p50_s=known(e2e["p50"]),
        e2e_p99_s=known(e2e["p99"]),
        goodput_fraction=fraction,
        saturated=saturation(result.requests).saturated,
    )


def sweep(spec: ReplicaSpec, workload: Workload, loads: Iterable[float], slo: Mapping[str, float]) -> list[LoadPoint]:
    """A latency-against-load curve: one replay a load."""
    rate = mean_rate(workload)
    return [load_point(replay(spec, workload, load), load, load * rate, slo) for load in loads]
