"""What one replay says about a promise: the figures, what was missed, and by how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkit.metrics.latency import Latencies, finished_latencies
from simkit.metrics.result import F64, I64, Histogram, RequestColumns, RunResult, Status
from simkit.metrics.saturation import saturation
from simkit.metrics.slo import ATTAINMENT, GOODPUT, Promise, Target, quantile

WARM_UP = 0.1  # share of the requests, the first ones, that no latency is taken from: the replica fills from empty
FIGURES = tuple(f"{metric}_{s}_s" for metric in ("ttft", "tpot", "ntpot", "e2e") for s in ("mean", "p50", "p90", "p99"))
SATURATED, UNFINISHED, REJECTED, GIVEN_UP = "saturated", "unfinished", "rejected", "given up"


@dataclass(frozen=True)
class Observation:
    """One replay. Latencies are of the requests after the warm-up; under a growing queue they are no steady state's.

    So is the mean of ITL; its percentiles and maximum are of all gaps, those of the warm-up too: the engine pools gaps
    in a histogram that does not know whose they are.
    """

    figures: Mapping[str, float]  # key -> s, or a share, or requests/s; NaN where there is nothing to measure
    missed: tuple[str, ...]  # keys of the targets, or "saturated", "unfinished", "rejected", "given up"
    saturated: bool
    worst: float  # the largest measured / limit over the targets; 1 is exactly at a target; inf if saturated
    requests: int
    rejected: int
    given_up: int  # neither served to the end nor rejected: unfinished, or given up by the client or the fleet
    attained: float  # share of the requests that meet every limit
    output_tokens: int
    prompt_tokens: int
    duration_s: float
    busy_fraction: float  # of the replicas' time, in which a step ran
    steps: int
    preemptions: int
    hit_tokens: int
    running_mean: float  # requests in a step, by step
    running_max: int
    kv_mean: float  # share of the KV blocks, over time
    kv_peak: float

    @property
    def holds(self) -> bool:
        """Whether everything promised was kept."""
        return not self.missed

    @property
    def tokens_per_s(self) -> float:
        """Prompt and output tokens served a second."""
        return (self.output_tokens + self.prompt_tokens) / self.duration_s if self.duration_s > 0 else 0.0


def observe(
    requests: RequestColumns,
    runs: Sequence[RunResult],
    promise: Promise,
    rows: NDArray[np.bool_] | None = None,
    may_reject: float = 0.0,
) -> Observation:
    """Judge the replicas `runs` that served `requests` between them.

    `rows` ([n], all after the warm-up if None) are the requests whose latencies count. A share of requests above
    `may_reject` that are longer than the context is a miss: a deployment that turns users away is no cheaper answer.
    """
    n = len(requests)
    counted = np.arange(n) >= WARM_UP * n if rows is None else rows
    latencies = latencies_of(requests, counted)
    itl = _together([run.itl for run in runs])
    figures = {key: _figure(latencies, itl, *parsed(key)) for key in FIGURES}
    figures |= {f"itl_{s}_s": _figure(latencies, itl, "itl", s) for s in ("mean", "p50", "p90", "p99")}
    for target in promise.targets:
        figures[target.key] = _figure(latencies, itl, target.metric, target.statistic)
    figures["itl_mean_s"] = _mean_gap_s(requests, latencies.row)
    end_ns = max((run.end_ns for run in runs), default=0)
    span_s = float(requests.arrival_ns[-1] - requests.arrival_ns[0]) / 1e9 if n else 0.0
    good = _good(latencies, promise.limits)
    served = int(np.count_nonzero(counted))
    attained = good / served if served else 0.0
    figures[ATTAINMENT] = attained
    # by the arrivals' span: the tail in which a finite replay drains is no part of a steady state
    figures[GOODPUT] = attained * (n - 1) / span_s if span_s > 0 else float("nan")
    saturated = saturation(requests).saturated
    rejected = int(np.count_nonzero(requests.status == Status.REJECTED))
    ratios = _ratios(figures, promise)
    missed = [key for key, ratio in ratios.items() if ratio > 1.0]
    missed += [SATURATED] if saturated else []
    missed += [UNFINISHED] if np.any(requests.status == Status.UNFINISHED) else []
    missed += [GIVEN_UP] if np.isin(requests.status, (Status.TIMED_OUT, Status.FAILED)).any() else []
    missed += [REJECTED] if rejected > may_reject * n else []
    steps = sum(run.steps for run in runs)
    done = requests.status == Status.FINISHED
    return Observation(
        figures=figures,
        missed=tuple(missed),
        saturated=saturated,
        worst=float("inf") if saturated else max(ratios.values(), default=0.0),
        requests=n,
        rejected=rejected,
        given_up=n - rejected - int(np.count_nonzero(done)),
        attained=attained,
        output_tokens=int(requests.generated_tokens[done].sum()),
        prompt_tokens=int(requests.prompt_tokens[done].sum()),
        duration_s=end_ns / 1e9,
        busy_fraction=sum(run.busy_ns for run in runs) / (end_ns * len(runs)) if end_ns else 0.0,
        steps=steps,
        preemptions=int(requests.preemptions.sum()),
        hit_tokens=int(requests.hit_tokens.sum()),
        running_mean=sum(run.batch_requests.total for run in runs) / steps if steps else 0.0,
        running_max=max((run.batch_requests.maximum for run in runs), default=0),
        kv_mean=float(np.mean([run.series.kv_used.mean() for run in runs if len(run.series.kv_used)] or [0.0])),
        kv_peak=max((float(run.series.kv_used.max()) for run in runs if len(run.series.kv_used)), default=0.0),
    )


_SAID = {
    SATURATED: "the queue grows",
    UNFINISHED: "requests are left unfinished",
    REJECTED: "requests are turned away",
    GIVEN_UP: "clients give up",
}


def named(key: str) -> str:
    """`ttft_p99_s` as "ttft p99"."""
    return "goodput" if key == GOODPUT else key.removesuffix("_s").replace("_", " ")


def miss(key: str) -> str:
    """What was missed, as a clause."""
    return _SAID.get(key) or (f"{named(key)} misses its target" if "_" in key or key == ATTAINMENT else key)


def parsed(key: str) -> tuple[str, str]:
    """`ttft_p99_s` as ("ttft", "p99")."""
    metric, statistic, _ = key.split("_")
    return metric, statistic


def latencies_of(requests: RequestColumns, counted: NDArray[np.bool_] | None = None) -> Latencies:
    """The latencies of the finished ones among some requests ([n]); all after the warm-up if None."""
    latencies = finished_latencies(requests)
    keep = latencies.row >= WARM_UP * len(requests) if counted is None else counted[latencies.row]
    names = ("row", "ttft_s", "tpot_s", "ntpot_s", "e2e_s", "queue_s")
    return Latencies(**{name: getattr(latencies, name)[keep] for name in names})


def _together(parts: Sequence[Histogram]) -> Histogram:
    """The histograms of several replicas as one."""
    if len(parts) == 1:
        return parts[0]
    count = np.sum([part.count for part in parts], axis=0)
    return Histogram(parts[0].lower, count, sum(p.total for p in parts), max(p.maximum for p in parts))


def _mean_gap_s(requests: RequestColumns, rows: I64) -> float:
    """Mean of the gaps between the tokens of some finished requests; NaN where there is none."""
    gaps = int((requests.generated_tokens[rows].astype(np.int64) - 1).sum())
    total_ns = int((requests.finish_ns[rows] - requests.first_token_ns[rows]).sum())
    return total_ns / gaps / 1e9 if gaps > 0 else float("nan")


def _figure(latencies: Latencies, itl: Histogram, metric: str, statistic: str) -> float:
    if metric == "itl":
        if not int(itl.count.sum()):
            return float("nan")
        value = {"mean": itl.mean(), "max": float(itl.maximum)}.get(statistic)
        return (itl.quantile(quantile(statistic) or 0.0) if value is None else value) / 1e9
    values: F64 = getattr(latencies, f"{metric}_s")
    return statistic_of(values, statistic)


def statistic_of(values: F64, statistic: str) -> float:
    """Mean, max or a percentile such as `p99` of what is not NaN; NaN of nothing."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan")
    if statistic == "mean":
        return float(values.mean())
    return float(values.max() if statistic == "max" else np.quantile(values, quantile(statistic) or 0.0))


def _good(latencies: Latencies, limits: Sequence[Target]) -> int:
    """Requests that meet each limit by their own latency; one token has no TPOT to miss (as vLLM's bench counts)."""
    good = np.ones(len(latencies.row), dtype=np.bool_)
    for limit in limits:
        if limit.metric != "itl":
            values: F64 = getattr(latencies, f"{limit.metric}_s")
            good &= np.isnan(values) | (values <= limit.limit_s)
    return int(np.count_nonzero(good))


def _ratios(figures: Mapping[str, float], promise: Promise) -> dict[str, float]:
    """Per key of the promise measured / limit, so that above 1 is a miss; what does not exist cannot be missed."""
    found = {target.key: figures[target.key] / target.limit_s for target in promise.targets}
    if promise.attainment is not None:
        found[ATTAINMENT] = _shortfall(figures[ATTAINMENT], promise.attainment)
    if promise.goodput_per_s is not None:
        found[GOODPUT] = _shortfall(figures[GOODPUT], promise.goodput_per_s)
    return {key: 0.0 if np.isnan(ratio) else ratio for key, ratio in found.items()}


def _shortfall(value: float, wanted: float) -> float:
    """How many times what was wanted was more than what was had."""
    return wanted / value if value > 0 else float("inf")
