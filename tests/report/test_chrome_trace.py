"""The timeline tells each request's life exactly, and nothing it does not know."""

import gzip
import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simkit.metrics.result import Events, RunResult
from simkit.report.chrome_trace import chrome_trace

MakeResult = Callable[..., RunResult]


def opened(result: RunResult, limit: int = 60_000) -> dict:
    return json.loads(gzip.decompress(chrome_trace(result, limit)), parse_constant=pytest.fail)


def slices_of(trace: dict) -> list[dict]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def sums_ns(trace: dict) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for event in slices_of(trace):
        sums[event["args"]["request"]] += ns(event["dur"])
    return sums


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 120),
    rate_per_s=st.floats(0.5, 50),
    places=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    limit=st.one_of(st.just(60_000), st.integers(0, 400)),
)
def test_any_run_gives_a_sound_timeline(
    make_result: MakeResult, n: int, rate_per_s: float, places: int, seed: int, limit: int
) -> None:
    result = make_result(n=n, rate_per_s=rate_per_s, places=places, seed=seed)
    trace = opened(result, limit)
    events = trace["traceEvents"]
    assert len(events) <= max(limit, 1)

    timed = [event for event in events if event["ph"] != "M"]
    assert all(math.isfinite(event["ts"]) and event["ts"] >= 0 for event in timed)
    assert [event["ts"] for event in timed] == sorted(event["ts"] for event in timed)

    lanes: dict[int, int] = defaultdict(int)
    for event in slices_of(trace):
        assert event["dur"] > 0
        assert ns(event["ts"]) >= lanes[event["tid"]], "two slices overlap on one lane"
        lanes[event["tid"]] = ns(event["ts"]) + ns(event["dur"])

    named = {event["tid"] for event in events if event["name"] == "thread_name"}
    assert named == set(lanes)
    e2e_ns = result.requests.finish_ns - result.requests.arrival_ns
    assert all(total == e2e_ns[int(request)] for request, total in sums_ns(trace).items())


def test_every_request_is_drawn_when_there_is_room(result: RunResult) -> None:
    trace = opened(result)
    assert len(sums_ns(trace)) == len(result.requests) == trace["otherData"]["requests_drawn"]
    assert trace["otherData"]["note"] == ""
    assert {event["name"] for event in slices_of(trace)} == {"queue", "prefill", "decode", "preempted"}
    # as many lanes as requests were ever alive at once
    starts, ends = np.sort(result.requests.arrival_ns), np.sort(result.requests.finish_ns)
    alive = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")
    assert len({event["tid"] for event in slices_of(trace)}) == alive.max()


def test_queue_and_prefill_slices_are_the_columns(result: RunResult) -> None:
    drawn: dict[tuple[str, str], int] = defaultdict(int)
    for event in slices_of(opened(result)):
        drawn[event["name"], event["args"]["request"]] += ns(event["dur"])
    requests = result.requests
    for row in range(len(requests)):
        assert drawn["queue", str(row)] == requests.queue_ns[row]
        assert drawn["prefill", str(row)] == requests.first_token_ns[row] - requests.scheduled_ns[row]


def test_counters_hold_the_series_mean(result: RunResult) -> None:
    trace = opened(result, limit=2000)
    for name, values in (("running", result.series.running), ("waiting", result.series.waiting)):
        points = [e for e in trace["traceEvents"] if e["ph"] == "C" and e["name"] == name]
        times = np.array([e["ts"] for e in points])
        steps = np.array([e["args"][name] for e in points])
        assert len(points) < 2000 * 0.2
        mean = float((steps[:-1] * np.diff(times)).sum() / (times[-1] - times[0]))
        assert mean == pytest.approx(values.mean(), rel=1e-3, abs=1e-5)


def test_an_unknown_end_is_not_drawn(result: RunResult) -> None:
    keep = len(result.events.time_ns) // 2
    cut = Events(result.events.time_ns[:keep], result.events.request[:keep], result.events.kind[:keep], False)
    trace = opened(replace(result, events=cut))
    last = int(cut.time_ns[-1])
    assert max(ns(event["ts"] + event["dur"]) for event in slices_of(trace)) <= last
    assert trace["otherData"]["log_complete"] is False
    assert "incomplete" in trace["otherData"]["note"]
    e2e_ns = result.requests.finish_ns - result.requests.arrival_ns
    totals = sums_ns(trace)
    unended = {e["args"]["request"] for e in slices_of(trace) if "note" in e["args"]}
    assert unended
    assert all(totals[request] < e2e_ns[int(request)] for request in unended)
    assert all(totals[request] == e2e_ns[int(request)] for request in totals.keys() - unended)


def test_the_same_run_gives_the_same_bytes(make_result: MakeResult) -> None:
    assert chrome_trace(make_result(n=50)) == chrome_trace(make_result(n=50))


def test_hostile_ids_stay_text(make_result: MakeResult) -> None:
    ids = tuple('</script>"\x00\ud800' + "x" * 5000 + str(i) for i in range(20))
    trace = opened(make_result(n=20, ids=ids))
    assert all(event["args"]["request"] == ids[0][:200] for event in slices_of(trace))
