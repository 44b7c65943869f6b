"""A plausible run made by hand: a queue before a fixed number of places, no engine involved."""

import heapq
from collections.abc import Callable

import numpy as np
import pytest

from simkit.metrics.load import LoadPoint
from simkit.metrics.result import WATERFALL, EventKind, Events, Histogram, RequestColumns, RunResult, Series, Status
from simkit.report.data import ReportData, Sensitivity

SECOND = 1_000_000_000


def histogram(values: np.ndarray, bins: int = 80) -> Histogram:
    """Counts of positive integers over a geometric grid."""
    if not len(values):
        return Histogram(np.zeros(0, np.int64), np.zeros(0, np.int64), 0, 0)
    lower = np.unique(np.geomspace(1, values.max() + 1, bins).astype(np.int64))
    count = np.histogram(values, np.append(lower, values.max() + 2))[0].astype(np.int64)
    return Histogram(lower, count, int(values.sum()), int(values.max()))


def build_result(
    n: int = 400,
    rate_per_s: float = 4.0,
    places: int = 14,
    ids: tuple[str, ...] | None = None,
    seed: int = 1,
    complete: bool = True,
) -> RunResult:
    """`n` requests served first come, first served in `places`; the waterfall of each sums to its latency exactly."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(SECOND / rate_per_s, n)).astype(np.int64)
    prompt = np.clip(rng.lognormal(6.5, 0.8, n), 1, 8000).astype(np.int32)
    output = np.clip(rng.lognormal(4.8, 0.9, n), 1, 1500).astype(np.int32)
    parts = {name: np.zeros(n, np.int64) for name in WATERFALL}
    parts["prefill_ns"] = (20_000_000 + prompt * 25_000.0).astype(np.int64)
    parts["decode_ns"] = (output.astype(np.int64) - 1) * 11_000_000 * rng.integers(95, 130, n) // 100
    parts["stalled_ns"] = (parts["decode_ns"] * rng.uniform(0, 0.3, n)).astype(np.int64)
    parts["host_ns"] = output.astype(np.int64) * 900_000
    preempted = (rng.random(n) < 0.06) & (output > 1)
    parts["preempted_ns"] = np.where(preempted, rng.integers(1, 4 * SECOND, n), 0)

    free = [0] * places
    scheduled = np.zeros(n, np.int64)
    for i in range(n):
        scheduled[i] = max(int(arrival[i]), heapq.heappop(free))
        heapq.heappush(free, int(scheduled[i] + sum(int(parts[name][i]) for name in WATERFALL)))
    parts["queue_ns"] = scheduled - arrival
    first = scheduled + parts["prefill_ns"]
    finish = arrival + sum(parts.values())
    first = np.where(output == 1, finish, first)

    log = []
    for i in range(n):
        log += [(int(arrival[i]), i, EventKind.ARRIVED), (int(scheduled[i]), i, EventKind.SCHEDULED)]
        log.append((int(first[i]), i, EventKind.FIRST_TOKEN))
        if preempted[i]:
            out = int(first[i] + (finish[i] - first[i]) // 3)
            back = min(out + int(parts["preempted_ns"][i]) // 2, int(finish[i]))
            log += [(out, i, EventKind.PREEMPTED), (back, i, EventKind.SCHEDULED)]
        log.append((int(finish[i]), i, EventKind.FINISHED))
    log.sort()
    columns = list(zip(*log, strict=True)) if log else [(), (), ()]
    events = Events(
        np.array(columns[0], np.int64), np.array(columns[1], np.int64), np.array(columns[2], np.int8), complete
    )
    requests = RequestColumns(
        request_id=ids,
        status=np.full(n, Status.FINISHED, np.int8),
        arrival_ns=arrival,
        scheduled_ns=scheduled,
        first_token_ns=first,
        finish_ns=finish,
        prompt_tokens=prompt,
        output_tokens=output,
        generated_tokens=output,
        hit_tokens=(prompt // 4 * (rng.random(n) < 0.3)).astype(np.int32),
        preemptions=preempted.astype(np.int32),
        **parts,
    )
    end = int(finish.max()) if n else 0
    return RunResult(
        requests=requests,
        series=build_series(requests, end, places),
        events=events,
        itl=histogram(rng.lognormal(16.3, 0.35, 50 * n).astype(np.int64)),
        batch_requests=histogram(rng.integers(1, places + 1, 10 * n)),
        batch_tokens=histogram(rng.integers(1, 2048, 10 * n)),
        steps=10 * n,
        busy_ns=end * 9 // 10,
        end_ns=end,
        computed_tokens=int(prompt.sum() + output.sum()),
        recomputed_tokens=int(prompt[preempted].sum()),
        blocks=4000,
        blocks_free_at_end=4000,
        complete=complete,
    )


def build_series(requests: RequestColumns, end_ns: int, places: int, buckets: int = 900) -> Series:
    """Requests running and waiting at each bucket's middle."""
    if not len(requests) or end_ns <= 0:
        nothing = np.zeros(0)
        return Series(SECOND, nothing, nothing, nothing, nothing, np.zeros(0, np.int64), nothing)
    bucket = max(1, end_ns // buckets)
    middle = np.arange(end_ns // bucket) * bucket + bucket // 2
    arrived = np.searchsorted(np.sort(requests.arrival_ns), middle)
    scheduled = np.searchsorted(np.sort(requests.scheduled_ns), middle)
    finished = np.searchsorted(np.sort(requests.finish_ns), middle)
    running = (scheduled - finished).astype(np.float64)
    rng = np.random.default_rng(7)
    return Series(
        bucket_ns=bucket,
        running=running,
        waiting=(arrived - scheduled).astype(np.float64),
        kv_used=np.clip(running / places * rng.uniform(0.8, 1.0, len(middle)), 0, 1),
        tokens_per_s=running * rng.uniform(80, 160, len(middle)),
        preemptions=(rng.random(len(middle)) < 0.03).astype(np.int64),
        busy=(running > 0).astype(np.float64),
    )


def build_summary(result: RunResult, saturated: bool = False) -> dict[str, object]:
    """The shape that the command line builds, from numpy directly."""
    r = result.requests
    done = r.status == Status.FINISHED
    n = np.maximum(r.generated_tokens[done], 1)
    e2e = (r.finish_ns - r.arrival_ns)[done] / 1e9
    samples = {
        "ttft": (r.first_token_ns - r.arrival_ns)[done] / 1e9,
        "tpot": ((r.finish_ns - r.first_token_ns)[done] / 1e9 / np.maximum(n - 1, 1))[n > 1],
        "ntpot": e2e / n,
        "e2e": e2e,
        "queue": r.queue_ns[done] / 1e9,
    }
    latency = {}
    for name, values in samples.items():
        known = len(values) and not saturated
        row = {f"p{q}": float(np.percentile(values, q)) if known else None for q in (50, 90, 95, 99)}
        latency[name] = {"mean": float(values.mean()) if known else None, **row}
        latency[name]["max"] = float(values.max()) if known else None
    return {
        "requests": {"arrived": len(r), "finished": int(done.sum()), "rejected": 0, "unfinished": int((~done).sum())},
        "latency_s": latency,
        "throughput": {"requests_per_s": 3.9, "output_tokens_per_s": 640.0, "total_tokens_per_s": 4210.0},
        "goodput": {"fraction": 0.97, "requests_per_s": 3.8},
        "kv": {"blocks": result.blocks, "peak_used": 0.96, "mean_used": 0.61},
        "preemptions": int(r.preemptions.sum()),
        "prefix_cache": {"hit_rate": 0.074, "hit_tokens": int(r.hit_tokens.sum())},
        "batch": {"requests_mean": 17.2, "requests_p99": 24.0, "tokens_mean": 133.0, "tokens_p99": 2048.0},
        "busy_fraction": 0.93,
        "saturation": {"saturated": saturated, "reason": "waiting requests grew by 0.9 a second" if saturated else ""},
        "step_time": {"provenance": "uncalibrated", "note": "roofline with datasheet figures; expect errors of 30 %"},
        "seed": 1,
        "versions": {"simkit": "0.1.0", "numpy": np.__version__},
    }


def build_sweep(knee: float = 1.3) -> list[LoadPoint]:
    """Loads around a knee."""
    points = []
    for load in (0.25, 0.5, 0.75, 1.0, 1.1, 1.2, 1.3, 1.5):
        wait = 0.08 / (1 - min(load, knee - 0.01) / knee)
        points.append(
            LoadPoint(
                load=load,
                rate_per_s=4.0 * load,
                ttft_p50_s=0.06 + 0.1 * wait,
                ttft_p99_s=0.12 + wait,
                tpot_p50_s=0.012 + 0.004 * load,
                tpot_p99_s=0.016 + 0.01 * load,
                e2e_p50_s=2.0 + wait,
                e2e_p99_s=14.0 + 2 * wait,
                goodput_fraction=max(0.0, min(1.0, 1.35 - load**2 / 2.5)),
                saturated=load >= knee,
            )
        )
    return points


def build_data(
    result: RunResult | None = None, saturated: bool = False, title: str = "llama-3.1-8b on h100-sxm"
) -> ReportData:
    """Everything a report can show."""
    result = result if result is not None else build_result()
    sweep = build_sweep(0.9 if saturated else 1.3)
    return ReportData(
        title=title,
        result=result,
        summary=build_summary(result, saturated),
        config={"deployment": {"model": "llama-3.1-8b", "device": "h100-sxm", "max_num_seqs": 14}, "seed": 1},
        sweep=sweep,
        sensitivity=[Sensitivity(f, p) for f, p in ((0.9, sweep[2]), (1.0, sweep[3]), (1.1, sweep[6]))],
        slo={"ttft_p99_s": 2.0, "tpot_p99_s": 0.03},
    )


@pytest.fixture(scope="session")
def make_result() -> Callable[..., RunResult]:
    return build_result


@pytest.fixture(scope="session")
def make_data() -> Callable[..., ReportData]:
    return build_data


@pytest.fixture(scope="session")
def result() -> RunResult:
    return build_result()


@pytest.fixture(scope="session")
def data(result: RunResult) -> ReportData:
    return build_data(result)
