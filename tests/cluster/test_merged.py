"""A fleet as one run: what adds up does, and a fleet of one is the run itself."""

from collections.abc import Callable

import numpy as np
import pytest
from same import assert_same_columns

from simkit.cluster.fleet import serve_fleet
from simkit.cluster.merged import merged_run
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.cluster.summary import fleet_summary
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.simulate import simulate
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
