"""Admission, patience and retries, on servers whose service times are known to the nanosecond."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from one_step_jobs import jobs, statuses

from simkit.cluster.client import Retries
from simkit.cluster.result import FleetResult
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.metrics.result import Status
from simkit.workloads.workload import Workload

Serve = Callable[..., FleetResult]
MS = 1_000_000


@pytest.fixture(scope="session")
def serve(single_server: ReplicaSpec) -> Serve:
    """`serve(workload, cluster=..)` on servers that take one request at a time."""

    def run(workload: Workload, **cluster: object) -> FleetResult:
        return serve_cluster(workload, Cluster.model_validate(cluster), lambda _: single_server, 0)

    return run


def test_a_full_queue_answers_429(serve: Serve) -> None:
    # one runs, two wait, the fourth is turned away; the fifth comes when there is room again
    fleet = serve(jobs([0, 1, 2, 3, 15], [10] * 5), admission={"replica_limit": 1, "queue_limit": 2})
    assert statuses(fleet) == ["finished", "finished", "finished", "rejected", "finished"]
    assert (fleet.requests.finish_ns // MS).tolist() == [10, 20, 30, 0, 40]
    assert fleet.accounts.rejected == 1
    assert fleet.accounts.attempts == 5


def test_the_urgent_go_first_and_shed_the_others(serve: Serve) -> None:
    admission = {"replica_limit": 1, "queue_limit": 2, "order": "priority", "shed": True}
    fleet = serve(jobs([0, 1, 2, 3], [10] * 4, priority=[0, 5, 2, 1]), admission=admission)
    assert statuses(fleet) == ["finished", "rejected", "finished", "finished"]
    assert (fleet.requests.finish_ns[[2, 3]] // MS).tolist() == [30, 20]
    kept = serve(jobs([0, 1, 2, 3], [10] * 4, priority=[0, 5, 2, 1]), admission={**admission, "shed": False})
    assert statuses(kept) == ["finished", "finished", "finished", "rejected"]


def test_who_is_past_the_deadline_is_dropped_at_its_turn(serve: Serve) -> None:
    workload = replace(jobs([0, 1, 2], [10] * 3), extra={"deadline_us": (None, 8_000, 30_000)})
    fleet = serve(workload, admission={"replica_limit": 1, "drop_late": True})
    assert statuses(fleet) == ["finished", "timed_out", "finished"]
    assert fleet.requests.finish_ns[2] == 20 * MS


def test_impatient_clients_free_the_server(serve: Serve) -> None:
    # the second waits 14 of its 12 ms in the replica's queue, the third is served right after the first
    fleet = serve(jobs([0, 1, 2], [15, 10, 10]), clients={"timeout_s": 0.012})
    assert statuses(fleet) == ["timed_out", "timed_out", "timed_out"]
    assert (fleet.requests.finish_ns // MS).tolist() == [12, 13, 14]
    patient = serve(jobs([0, 1, 2], [15, 10, 10]), clients={"timeout_s": 0.026})
    assert statuses(patient) == ["finished", "finished", "timed_out"]


def test_the_first_token_ends_that_patience(spec: ReplicaSpec) -> None:
    workload = Workload("w", np.zeros(1, np.int64), np.array([100], np.int32), np.array([500], np.int32))
    for timeout_s, outcome in ((0.001, Status.TIMED_OUT), (0.5, Status.FINISHED)):
        cluster = Cluster.model_validate({"clients": {"first_token_timeout_s": timeout_s}})
        fleet = serve_cluster(workload, cluster, lambda _: spec, 0)
        assert fleet.requests.status[0] == outcome
        # it was over long before the answer would have been whole
        assert (fleet.requests.finish_ns[0] > 1e9) == (outcome == Status.FINISHED)


def test_retries_back_off_and_are_counted(serve: Serve) -> None:
    retries = {"most": 2, "first_pause_s": 0.004, "factor": 2.0, "longest_pause_s": 1.0, "jitter": 0.0}
    # the server is busy till 10: tries at 1, 1 + 4, 5 + 8 ms; the last is let in
    fleet = serve(
        jobs([0, 1], [10, 10]), admission={"replica_limit": 1, "queue_limit": 0}, clients={"retries": retries}
    )
    assert statuses(fleet) == ["finished", "finished"]
    assert fleet.requests.finish_ns[1] == 23 * MS
    assert fleet.outside_ns[1] == 12 * MS
    assert fleet.requests.queue_ns[1] == 12 * MS
    assert (fleet.accounts.attempts, fleet.accounts.retries) == (4, 2)
    # one retry fewer, and it is over at 5 ms
    fewer = serve(
        jobs([0, 1], [10, 10]),
        admission={"replica_limit": 1, "queue_limit": 0},
        clients={"retries": {**retries, "most": 1}},
    )
    assert statuses(fewer) == ["finished", "rejected"]


def test_pauses_are_those_of_the_formula() -> None:
    retries = Retries(most=9, first_pause_s=0.5, factor=2.0, longest_pause_s=8.0, jitter=0.25)
    assert [retries.pause_ns(k, 0.0) for k in range(6)] == [500 * MS, 10**9, 2 * 10**9, 4 * 10**9, 8 * 10**9, 8 * 10**9]
    assert retries.pause_ns(0, 1.0) == 375 * MS


def test_as_many_break_off_as_the_exponential_says(serve: Serve) -> None:
    """Each by itself on a server of 10 ms; patience exponential of mean 10 ms: a share of 1 - 1/e breaks off."""
    n = 2000
    fleet = serve(jobs([20 * i for i in range(n)], [10] * n), clients={"cancel_share": 1.0, "cancel_after_s": 0.01})
    share = fleet.accounts.timed_out / n
    assert share == pytest.approx(1 - np.exp(-1), abs=3 * np.sqrt(0.23 / n))


def test_too_long_is_rejected_without_a_retry(serve: Serve) -> None:
    fleet = serve(jobs([0, 1], [10, 600]), clients={"retries": {"most": 3}})
    assert statuses(fleet) == ["finished", "rejected"]
    assert fleet.accounts.attempts == 2


def test_bad_clusters_are_one_clear_line(serve: Serve) -> None:
    workload = jobs([0], [1])
    with pytest.raises(InputError, match="no choose"):
        serve(workload, router=str(_blind_only()), clients={"timeout_s": 1.0})
    with pytest.raises(ValueError, match="no replicas, and nothing that starts one"):
        Cluster.model_validate({"replicas": 0})
    with pytest.raises(ValueError, match="two pools have the same name"):
        Cluster.model_validate({"pools": [{}, {}]})
    with pytest.raises(InputError, match="names no session_id"):
        serve(workload, sessions={"replay": "closed"})


def _blind_only() -> object:
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / "blind.py"
    path.write_text("class Router:\n    def shares(self, workload, replicas):\n        return [0] * len(workload)\n")
    return path
