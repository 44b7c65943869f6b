"""Clients of a fleet wait for its front ends too."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from simkit.cluster.checks import check_fleet
from simkit.cluster.fleet import serve_fleet
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import ReplicaSpec
from simkit.models.front_end import FrontEndLaw
from simkit.workloads.workload import Workload

Chats = Callable[[int, float, int], Workload]
SLOW, QUICK = FrontEndLaw(5e6, 2e3), FrontEndLaw(1e6)


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding", "sticky"])
def test_each_request_waits_for_the_front_end_of_its_replica(spec: ReplicaSpec, chats: Chats, router: str) -> None:
    """Routers by share, in the compiled loop and on the clock; who goes where does not change."""
    workload = chats(60, 30.0, 3)
    plain = serve_fleet(workload, [spec] * 2, router, 1)
    fleet = serve_fleet(workload, [replace(spec, front_end=law) for law in (SLOW, QUICK)], router, 1)
    assert np.array_equal(plain.replica_of, fleet.replica_of)
    expected = np.where(fleet.replica_of == 0, 5_000_000 + 2_000 * workload.prompt_tokens.astype(np.int64), 1_000_000)
    assert np.array_equal(fleet.requests.front_end_ns, expected)
    assert np.array_equal(fleet.requests.finish_ns - plain.requests.finish_ns, expected)
    check_fleet(fleet, workload)


@pytest.mark.parametrize(
    "settings",
    [
        {"pools": [{"name": "a", "replicas": 2}], "clients": {"timeout_s": 60}},
        {"pools": [{"name": "p"}, {"name": "d"}], "disaggregation": {"prefill": ["p"], "decode": ["d"]}},
    ],
)
def test_whatever_the_cluster_does_parts_sum(spec: ReplicaSpec, chats: Chats, settings: dict[str, object]) -> None:
    workload = chats(40, 20.0, 4)
    fleet = serve_cluster(workload, Cluster.model_validate(settings), lambda _: replace(spec, front_end=SLOW))
    assert fleet.requests.front_end_ns.min() >= 5_000_000
    check_fleet(fleet, workload)
