"""A run as Chrome trace JSON, the timeline format that https://ui.perfetto.dev opens.

Format: "Trace Event Format" (Google, 2016): `X` complete slices, `C` counters, `M` metadata; times in microseconds.
"""

import gzip
import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from simkit.metrics.latency import request_label
from simkit.metrics.result import EventKind, RequestColumns, RunResult, Series

REPLICA = 1  # process id: 0 is taken for the idle process by some viewers
COUNTER_SHARE = 0.2  # of the limit at most, so that requests are what is mostly shown

Slice = tuple[str, int, int]  # name, start ns, end ns


@dataclass(frozen=True)
class Life:
    """One request's slices, without gaps from its arrival on; `ended` tells whether the log held its end."""

    row: int
    slices: tuple[Slice, ...]
    ended: bool


def chrome_trace(result: RunResult, limit_events: int = 60_000) -> bytes:
    """The run as gzipped trace JSON, at most `limit_events` events long; the same run gives the same bytes.

    Requests are taken in order of arrival, each whole or not at all, a request a lane; a lane is used again when its
    request ended. A slice whose end the log does not hold is left out, and `otherData` says what is missing.
    """
    counters = list(_counters(result.series, int(limit_events * COUNTER_SHARE)))
    slices, lanes, drawn = _slices(result, limit_events - len(counters) - 2)
    body = sorted(counters + slices, key=lambda event: (event["ts"], event.get("tid", 0)))
    arrived = int((result.events.kind == EventKind.ARRIVED).sum())
    trace = {
        "traceEvents": [*_names(lanes), *body],
        "displayTimeUnit": "ms",
        "otherData": {
            "producer": "simkit",
            "requests_drawn": drawn,
            "requests_logged": arrived,
            "requests": len(result.requests),
            "log_complete": result.events.complete,
            "run_complete": result.complete,
            "note": _note(result, drawn),
        },
    }
    text = json.dumps(trace, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return gzip.compress(text.encode("ascii"), compresslevel=6, mtime=0)


def request_lives(result: RunResult, limit_requests: int) -> list[Life]:
    """The lives of the first `limit_requests` requests of the event log, in order of arrival."""
    events = result.events
    arrivals = np.flatnonzero(events.kind == EventKind.ARRIVED)[:limit_requests]
    rows = events.request[arrivals]
    wanted = np.zeros(len(result.requests), dtype=np.bool_)
    wanted[rows] = True
    chosen = np.flatnonzero(wanted[events.request])
    log: dict[int, list[tuple[int, int]]] = {int(row): [] for row in rows}
    columns = (events.request[chosen].tolist(), events.kind[chosen].tolist(), events.time_ns[chosen].tolist())
    for row, kind, time_ns in zip(*columns, strict=True):
        log[row].append((kind, time_ns))
    return [_life(row, entries) for row, entries in log.items()]


def _life(row: int, entries: list[tuple[int, int]]) -> Life:
    """The slices between a request's logged changes."""
    slices: list[Slice] = []
    name, start, first_token = "", 0, False
    for kind, time_ns in entries:
        if name and time_ns > start:
            slices.append((name, start, time_ns))
        start = time_ns
        if kind == EventKind.FINISHED:
            return Life(row, tuple(slices), True)
        if kind == EventKind.ARRIVED:
            name = "queue"
        elif kind == EventKind.PREEMPTED:
            name = "preempted"
        elif kind == EventKind.FIRST_TOKEN:
            name, first_token = "decode", True
        else:
            name = "decode" if first_token else "prefill"
    return Life(row, tuple(slices), False)


def _slices(result: RunResult, budget: int) -> tuple[list[dict[str, object]], int, int]:
    """(slices, lanes used, requests drawn) of as many whole lives as `budget` events hold, lane names included."""
    drawn: list[dict[str, object]] = []
    free: list[int] = []  # heap of lanes given back
    busy: list[tuple[int, int]] = []  # heap of (end ns, lane)
    lanes = requests = 0
    for life in request_lives(result, max(0, budget)):
        if not life.slices:
            continue
        while busy and busy[0][0] <= life.slices[0][1]:
            heapq.heappush(free, heapq.heappop(busy)[1])
        budget -= len(life.slices) + (0 if free else 2)
        if budget < 0:
            break
        if not free:
            lanes += 1
            heapq.heappush(free, lanes)
        lane = heapq.heappop(free)
        heapq.heappush(busy, (life.slices[-1][2], lane))
        arguments = _arguments(result.requests, life)
        drawn += [
            {"name": n, "cat": "request", "ph": "X", "pid": REPLICA, "tid": lane, **_span(a, b), "args": arguments}
            for n, a, b in life.slices
        ]
        requests += 1
    return drawn, lanes, requests


def _span(start_ns: int, end_ns: int) -> dict[str, float]:
    return {"ts": start_ns / 1000, "dur": (end_ns - start_ns) / 1000}


def _arguments(requests: RequestColumns, life: Life) -> dict[str, object]:
    arguments: dict[str, object] = {
        "request": request_label(requests, life.row)[:200],
        "prompt_tokens": int(requests.prompt_tokens[life.row]),
        "output_tokens": int(requests.output_tokens[life.row]),
        "cached_tokens": int(requests.hit_tokens[life.row]),
        "preemptions": int(requests.preemptions[life.row]),
    }
    return arguments if life.ended else {**arguments, "note": "its end is not in the log"}


def _counters(series: Series, budget: int) -> Iterator[dict[str, object]]:
    """Running, waiting and KV use as steps; neighbouring buckets are averaged until `budget` events hold them."""
    buckets = len(series.running)
    size = -(-3 * (buckets + 1) // max(1, budget)) if buckets else 1
    if not buckets or budget < 3 * (-(-buckets // size) + 1):
        return
    edges = np.arange(0, buckets, size)
    lengths = np.diff(np.append(edges, buckets))
    for name, values in (("running", series.running), ("waiting", series.waiting), ("kv_used", series.kv_used)):
        means = np.add.reduceat(np.nan_to_num(values), edges) / lengths
        for edge, mean in zip(edges.tolist(), means.tolist(), strict=True):
            yield _counter(name, edge * series.bucket_ns, mean)
        yield _counter(name, buckets * series.bucket_ns, 0.0)


def _counter(name: str, time_ns: int, value: float) -> dict[str, object]:
    return {"name": name, "ph": "C", "pid": REPLICA, "ts": time_ns / 1000, "args": {name: round(value, 6)}}


def _names(lanes: int) -> list[dict[str, object]]:
    def meta(name: str, lane: int, key: str, value: object) -> dict[str, object]:
        return {"name": name, "ph": "M", "pid": REPLICA, "tid": lane, "ts": 0, "args": {key: value}}

    named = [meta("process_name", 0, "name", "replica 0")]
    for lane in range(1, lanes + 1):
        named += [
            meta("thread_name", lane, "name", f"slot {lane}"),
            meta("thread_sort_index", lane, "sort_index", lane),
        ]
    return named


def _note(result: RunResult, drawn: int) -> str:
    notes = []
    if not result.events.complete:
        notes.append("the event log is incomplete: slices whose end it does not hold are left out")
    if not result.complete:
        notes.append("the run was interrupted")
    if drawn < len(result.requests):
        notes.append(f"{drawn} of {len(result.requests)} requests are drawn, in order of arrival")
    return "; ".join(notes)
