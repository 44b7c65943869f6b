"""A fleet as one run: what adds up does, and a fleet of one is the run itself."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_step_jobs import jobs
from same import assert_same_columns

from simkit.cluster.fleet import serve_fleet
from simkit.cluster.merged import merged_run, request_places
from simkit.cluster.result import rows_of_each
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.cluster.summary import fleet_summary
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.simulate import simulate
from simkit.metrics.result import RunResult, Status
from simkit.metrics.summary import summarize
from simkit.workloads.workload import Workload

Chats = Callable[[int, float, int], Workload]


def test_a_fleet_of_one_is_that_run(spec: ReplicaSpec, chats: Chats) -> None:
    workload = chats(200, 20.0, 1)
    alone = simulate(workload, spec.limits, spec.tables, spec.num_blocks)
    merged = merged_run(serve_fleet(workload, [spec], "random"))
    assert_same_columns(merged.requests, alone.requests)
    for name in ("steps", "end_ns", "computed_tokens", "recomputed_tokens", "blocks", "blocks_free_at_end"):
        assert getattr(merged, name) == getattr(alone, name), name
    assert np.array_equal(merged.itl.count, alone.itl.count)
    # a replica logs an arrival when it learns of it; the fleet has them in order of time
    order = np.argsort(alone.events.time_ns, kind="stable")
    for column in ("time_ns", "request", "kind"):
        assert np.array_equal(getattr(merged.events, column), getattr(alone.events, column)[order]), column
    for name in ("running", "waiting", "tokens_per_s"):
        mine, theirs = getattr(merged.series, name), getattr(alone.series, name)
        assert mine[: len(theirs)] == pytest.approx(theirs)


def test_what_adds_up_does(spec: ReplicaSpec, chats: Chats) -> None:
    workload = chats(400, 60.0, 2)
    fleet = serve_fleet(workload, [spec] * 3, "least_outstanding")
    merged = merged_run(fleet)
    summary = summarize(merged)
    tokens = float(merged.series.tokens_per_s.sum()) * merged.series.bucket_ns / 1e9
    assert tokens == pytest.approx(sum(result.computed_tokens for result in fleet.replicas))
    assert merged.itl.count.sum() == (workload.output_tokens - 1).sum()
    assert merged.series.preemptions.sum() == fleet.requests.preemptions.sum()
    assert summary["complete"] is True
    told = fleet_summary(fleet)
    assert sum(row["requests"] for row in told["replicas"]) == 400  # type: ignore[index, union-attr, misc]
    assert told["gpu_hours"] == pytest.approx(3 * fleet.end_ns / 3.6e12)
    # every event is of a request that was there at that time
    arrival = fleet.requests.arrival_ns[merged.events.request]
    assert (merged.events.time_ns >= arrival).all()


CRASH = {"faults": {"schedule": [{"at_s": 0.005, "kind": "crash", "replica": 0, "for_s": 0.020}]}}
UPDATE = {"faults": {"schedule": [{"at_s": 0.050, "kind": "update", "for_s": 0.020}]}}
SCALING = {
    "startup": {"engine_s": 0.020, "load_gb_per_s": 1e4},
    "autoscaling": [
        {"most": 4, "interval_s": 0.01, "down_stabilization_s": 0.05, "rule": {"kind": "queue", "target": 3}}
    ],
}


@pytest.mark.parametrize(
    ("cluster", "arrivals", "lives", "most", "left"),
    [
        ({"replicas": 2, **CRASH}, range(0, 100, 4), 3, 2, 2),  # one of two crashes at 5 ms and is back at 25 ms
        ({"replicas": 4, **UPDATE}, range(0, 400, 4), 8, 4, 4),  # never more than three while one is updated
        (SCALING, [*range(0, 300, 2), 1500], 4, 4, 1),  # up to four, and but one long before the end
    ],
)
def test_kv_blocks_are_those_there_at_once(
    single_server: ReplicaSpec, cluster: dict[str, object], arrivals: list[int], lives: int, most: int, left: int
) -> None:
    workload = jobs(list(arrivals), [10] * len(arrivals))
    fleet = serve_cluster(workload, Cluster.model_validate(cluster), lambda _: single_server, 0)
    merged = merged_run(fleet)
    assert len(fleet.lives) == lives
    assert merged.blocks == most * (single_server.num_blocks - 1)  # one is no cache: vLLM's null block
    assert merged.blocks_free_at_end == left * (single_server.num_blocks - 1)
    # brute force: whoever is there in the middle between two events
    ends = {fleet.end_ns, *(at for life in fleet.lives for at in (life.ready_ns, life.ended_ns) if at is not None)}
    times = sorted(ends)
    there = [
        sum(
            part.blocks
            for life, part in zip(fleet.lives, fleet.replicas, strict=True)
            if life.ready_ns is not None and life.ready_ns <= at and (life.ended_ns is None or at < life.ended_ns)
        )
        for at in ((a + b) / 2 for a, b in pairwise(times))
    ]
    assert max(there) == merged.blocks


def test_use_of_kv_is_a_share_of_all_blocks_that_are_there(spec: ReplicaSpec, chats: Chats) -> None:
    """Half of 100 blocks and a tenth of 300: 80 of 400. With 100 more, all held, for half of the time: 130 of 450."""
    fleet = serve_fleet(chats(50, 20.0, 2), [spec] * 2, "round_robin")
    bucket_ns = fleet.end_ns + 1

    def held(part: RunResult, blocks: int, share: float) -> RunResult:
        flat = {name: np.zeros(1) for name in ("running", "waiting", "tokens_per_s", "busy")}
        series = replace(
            part.series, **flat, bucket_ns=bucket_ns, kv_used=np.array([share]), preemptions=np.zeros(1, int)
        )
        return replace(part, blocks=blocks, series=series)

    # shares are means over the bucket, which ends a nanosecond after the run
    small, large = held(fleet.replicas[0], 100, 0.5), held(fleet.replicas[1], 300, 0.1)
    merged = merged_run(replace(fleet, replicas=(small, large)))
    assert merged.blocks == 400
    assert merged.series.kv_used.tolist() == pytest.approx([80 / 400], rel=1e-6)
    # a third of 100 blocks, wholly held, for the second half of the time
    late = replace(fleet.lives[0], number=2, ready_ns=fleet.end_ns // 2)
    third = held(fleet.replicas[0], 100, 0.5)
    grown = replace(fleet, replicas=(small, large, third), lives=(*fleet.lives, late))
    assert merged_run(grown).blocks == 500
    assert merged_run(grown).series.kv_used.tolist() == pytest.approx([130 / 450], rel=1e-6)


def test_a_fleet_that_outlasts_its_replicas_has_a_series_no_longer(spec: ReplicaSpec) -> None:
    """The only replica is gone at 1 s, for longer than the clients wait: two hours in which nothing happens."""
    workload = Workload("w", np.array([0, 10**9]), np.array([16, 16], np.int32), np.array([4, 4], np.int32))
    cluster = Cluster.model_validate(
        {
            "faults": {"schedule": [{"at_s": 1.0, "kind": "crash", "for_s": 1e6}]},
            "clients": {"timeout_s": 7200.0},
        }
    )
    fleet = serve_cluster(workload, cluster, lambda _: spec, 0)
    assert (fleet.accounts.finished, fleet.accounts.timed_out) == (1, 1)
    series = merged_run(fleet).series
    assert len(series.busy) <= 2048
    assert len(series.busy) * series.bucket_ns >= fleet.end_ns == 8_200 * 10**9
    assert series.tokens_per_s.sum() * series.bucket_ns / 1e9 == pytest.approx(fleet.replicas[0].computed_tokens)


def test_each_request_names_the_replica_that_answered_it(spec: ReplicaSpec, chats: Chats) -> None:
    """Found again in the replicas' own books: what a replica finished at a time is a request that names it."""
    described = {
        "replicas": 3,
        "router": "least_outstanding",
        "sessions": {"replay": "closed", "think_s": 0.2},
        "faults": {"schedule": [{"at_s": 2.0, "kind": "crash", "replica": 1, "for_s": 1.0}]},
    }
    workload = replace(chats(300, 40.0, 3), session_id=tuple(f"chat-{i % 60}" for i in range(300)))
    fleet = serve_cluster(workload, Cluster.model_validate(described), lambda _: spec, 0)
    assert len(fleet.lives) == 4  # one of them began twice
    merged, places = merged_run(fleet), request_places(fleet)
    assert list(places) == ["replica"]
    finished = merged.requests.status == Status.FINISHED
    assert finished.sum() == fleet.accounts.finished > 200
    for number in range(3):
        mine = [part for life, part in zip(fleet.lives, fleet.replicas, strict=True) if life.number == number]
        there = np.concatenate([part.requests.finish_ns[part.requests.status == Status.FINISHED] for part in mine])
        clients = (merged.requests.finish_ns - merged.requests.front_end_ns)[finished & (places["replica"] == number)]
        assert np.sort(clients).tolist() == np.sort(there).tolist()


def test_prompts_computed_elsewhere_name_that_replica_too(spec: ReplicaSpec, chats: Chats) -> None:
    pools = [{"name": "prefill", "replicas": 2}, {"name": "decode", "replicas": 2}]
    described = {"pools": pools, "disaggregation": {"local_below_tokens": 100}}
    fleet = serve_cluster(chats(200, 20.0, 4), Cluster.model_validate(described), lambda _: spec, 0)
    assert fleet.handover is not None
    places = request_places(fleet)
    assert set(places["replica"].tolist()) == {2, 3}
    assert set(places["prefill_replica"].tolist()) == {-1, 0, 1}
    assert (places["prefill_replica"] >= 0).sum() == fleet.handover.handed_over
    for number in range(2):
        assert (places["prefill_replica"] == number).sum() == len(fleet.replicas[number].requests)


@given(replica_of=st.lists(st.integers(-1, 5), max_size=50), count=st.integers(6, 8))
def test_rows_of_each_replica_are_those_that_name_it(replica_of: list[int], count: int) -> None:
    named = np.array(replica_of, dtype=np.int32)
    found = rows_of_each(named, count)
    assert [rows.tolist() for rows in found] == [np.flatnonzero(named == i).tolist() for i in range(count)]
