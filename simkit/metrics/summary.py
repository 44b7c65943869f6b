"""A run in one small tree of numbers: what `--json` prints and summary.json holds."""

from collections.abc import Mapping, Sequence

import numpy as np

from simkit.metrics.latency import Latencies, finished_latencies
from simkit.metrics.result import F64, WATERFALL, Histogram, RunResult, Status
from simkit.metrics.saturation import Saturation, saturation
from simkit.metrics.slo import Target, promise, quantile

Tree = dict[str, object]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def summarize(result: RunResult, slo: Mapping[str, float] | None = None) -> Tree:
    """The summary of a run. Latencies in s; None where there is nothing to measure.

    Under a growing queue `latency_s` is None throughout, because no such value exists for the load: what this run of
    this length showed is under `latency_of_this_run_s`.
    """
    latencies = finished_latencies(result.requests)
    verdict = saturation(result.requests)
    promised = promise(slo or {})
    measured = _latency(latencies, result.itl, promised.targets)
    unknown: Tree = {metric: dict.fromkeys(_keys(), None) for metric in measured}
    return {
        "complete": result.complete,
        "requests": _requests(result),
        "saturation": _saturation(verdict),
        "latency_s": unknown if verdict.saturated else measured,
        "latency_of_this_run_s": measured,
        "throughput": _throughput(result),
        "goodput": goodput(result, latencies, promised.limits),
        "waterfall_mean_s": _waterfall(result),
        "kv": _kv(result),
        "preemptions": int(result.requests.preemptions.sum()),
        "recomputed_tokens": result.recomputed_tokens,
        "prefix_cache": _prefix_cache(result),
        "batch": {
            "steps": result.steps,
            "requests_mean": result.batch_requests.mean(),
            "requests_max": result.batch_requests.maximum,
            "tokens_mean": result.batch_tokens.mean(),
            "tokens_max": result.batch_tokens.maximum,
        },
        "busy_fraction": result.busy_ns / result.end_ns if result.end_ns else 0.0,
        "duration_s": result.end_ns / 1e9,
        "notes": list(result.notes),
    }


def _keys() -> Sequence[str]:
    return ("mean", *QUANTILES, "max")


def statistics(values: F64, quantiles: Mapping[str, float] = QUANTILES) -> dict[str, float | None]:
    """Mean, quantiles (linear between order statistics, as numpy's) and maximum of what is not NaN; None if nothing."""
    values = values[~np.isnan(values)]
    if not len(values):
        return dict.fromkeys(("mean", *quantiles, "max"), None)
    found = np.quantile(values, list(quantiles.values()))
    named = dict(zip(quantiles, found.tolist(), strict=True))
    return {"mean": float(values.mean()), **named, "max": float(values.max())}


def _latency(latencies: Latencies, itl: Histogram, wanted: Sequence[Target]) -> Tree:
    """The statistics printed, and those that a target names beside them."""
    measured: Tree = {}
    for name in ("ttft", "tpot", "ntpot", "e2e", "queue", "itl"):
        asked = [target.statistic for target in wanted if target.metric == name]
        extra = {statistic: q for statistic in asked if (q := quantile(statistic)) is not None}
        quantiles = {**QUANTILES, **extra}
        if name == "itl":
            measured[name] = _gaps(itl, quantiles)
        else:
            measured[name] = statistics(getattr(latencies, f"{name}_s"), quantiles)
    return measured


def _gaps(itl: Histogram, quantiles: Mapping[str, float]) -> dict[str, float | None]:
    """Statistics of the gaps between tokens, s."""
    if not int(itl.count.sum()):
        return dict.fromkeys(("mean", *quantiles, "max"), None)
    named = {name: itl.quantile(q) / 1e9 for name, q in quantiles.items()}
    return {"mean": itl.mean() / 1e9, **named, "max": itl.maximum / 1e9}


def _requests(result: RunResult) -> Tree:
    status = result.requests.status
    counts = {name.lower(): int(np.count_nonzero(status == value)) for name, value in Status.__members__.items()}
    for outcome in ("timed_out", "failed"):  # there are none without a fleet
        if not counts[outcome]:
            del counts[outcome]
    return {"arrived": len(status), **counts}


def _saturation(verdict: Saturation) -> Tree:
    return {
        "saturated": verdict.saturated,
        "conclusive": verdict.conclusive,
        "growth": verdict.growth,
        "reason": verdict.reason,
    }


def _throughput(result: RunResult) -> Tree:
    done = result.requests.status == Status.FINISHED
    duration_s = result.end_ns / 1e9
    if duration_s <= 0:
        return {"requests_per_s": 0.0, "output_tokens_per_s": 0.0, "total_tokens_per_s": 0.0}
    outputs = int(result.requests.generated_tokens.sum())
    prompts = int(result.requests.prompt_tokens[done].sum())
    return {
        "requests_per_s": int(np.count_nonzero(done)) / duration_s,
        "output_tokens_per_s": outputs / duration_s,
        "total_tokens_per_s": (outputs + prompts) / duration_s,
    }


def goodput(result: RunResult, latencies: Latencies, wanted: Sequence[Target]) -> Tree:
    """Requests that met the limit of every target, each by its own latency; a request of one token meets TPOT limits.

    A rejected or unfinished request meets none. ITL is pooled over requests, so an ITL target does not count here.
    """
    good = np.ones(len(latencies.row), dtype=bool)
    for target in wanted:
        if target.metric != "itl":
            values: F64 = getattr(latencies, f"{target.metric}_s")
            good &= np.isnan(values) | (values <= target.limit_s)
    count = int(np.count_nonzero(good))
    arrived = len(result.requests)
    return {
        "requests": count,
        "fraction": count / arrived if arrived else 0.0,
        "requests_per_s": count / (result.end_ns / 1e9) if result.end_ns else 0.0,
        "targets": {target.key: target.limit_s for target in wanted},
    }


def _waterfall(result: RunResult) -> Tree:
    done = result.requests.status == Status.FINISHED
    means: Tree = {}
    for part in WATERFALL:
        values = getattr(result.requests, part)[done]
        means[part.removesuffix("_ns")] = float(values.mean()) / 1e9 if len(values) else None
    return means


def _kv(result: RunResult) -> Tree:
    used = result.series.kv_used
    return {
        "blocks": result.blocks,
        "blocks_free_at_end": result.blocks_free_at_end,
        "mean_used": float(used.mean()) if len(used) else 0.0,
        "peak_used": float(used.max()) if len(used) else 0.0,
    }


def _prefix_cache(result: RunResult) -> Tree:
    requests = result.requests
    # who gave up while it waited was never looked up
    started = (requests.status == Status.FINISHED) | (requests.scheduled_ns > 0) | (requests.generated_tokens > 0)
    prompts = int(requests.prompt_tokens[started].sum())
    hits = int(requests.hit_tokens.sum())
    return {"hit_tokens": hits, "hit_rate": hits / prompts if prompts else 0.0}
