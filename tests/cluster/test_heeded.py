"""What a cluster's section says matters, or is refused in one line that names it."""

from dataclasses import replace

import numpy as np
import pytest
from one_step_jobs import jobs
from pydantic import ValidationError

from simkit.cluster.heeded import check_heeded
from simkit.cluster.places import places_of
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.workloads.workload import Workload

SCALING = {"least": 1, "most": 9, "rule": {"kind": "queue", "target": 2}}
HOST = {"name": "host", "capacity_gib": 1, "link": {"kind": "pcie5"}}
PLAIN = jobs([0, 1, 2], [10, 10, 10])
URGENT = jobs([0, 1, 2], [10, 10, 10], [0, 1, 2])


def fault(**given: object) -> dict[str, object]:
    return {"faults": {"schedule": [{"at_s": 1, "kind": "crash", **given}]}}


TWO_POOLS = {"pools": [{"name": "a", "replicas": 3, "per_node": 2}, {"name": "b"}]}


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"replicas": 3, **fault(replica=3)}, "crash at 1 s: replica 3 is not there; give one from 0 to 2"),
        ({"replicas": 3, **fault(pool="defualt")}, "did you mean 'default'"),
        ({"replicas": 3, **fault(kind="node_down", node=2)}, "node 2 is not there; give one of 0"),
        ({**TWO_POOLS, **fault(pool="b", replica=2)}, "replica 2 is of pool 'a', on node 1"),
        ({**TWO_POOLS, **fault(pool="b", node=1)}, "nobody of pool 'b' is on node 1"),
        ({"faults": {"schedule": [{"at_s": 1, "kind": "slow", "for_s": 1, "node": 7}]}}, "node 7 is not there"),
        ({"admission": {"queue_limit": 5}}, "queue_limit: nobody waits at the door.*set replica_limit"),
        ({"admission": {"replica_limit": 2, "shed": True}}, "set queue_limit"),
        ({"admission": {"replica_limit": 2, "queue_limit": 2, "shed": True}}, "shed: all requests .* one priority"),
        ({"admission": {"replica_limit": 2, "order": "priority"}}, "order: all requests .* one priority"),
        ({"admission": {"replica_limit": 2, "drop_late": True}}, "deadline_us"),
        ({"sessions": {"replay": "open", "users": 3}}, "users: is of closed loops"),
        ({"autoscaling": [{**SCALING, "rule": {"kind": "slo"}}]}, "slo has no target"),
        ({"tiers": [HOST]}, "no hash_ids"),
        ({**TWO_POOLS, "router": {"kind": "by_length", "most_tokens": {"a": 9, "bb": 99}}}, "'bb' is not there"),
        ({**TWO_POOLS, "router": {"kind": "by_length", "most_tokens": {"a": 9}}}, "pool 'b' would get nothing"),
    ],
)
def test_what_could_not_matter_is_refused(cluster: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as found:
        check_heeded(Cluster.model_validate(cluster), PLAIN)
    assert str(found.value).startswith("cluster.")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "cluster",
    [
        {"replicas": 3, **fault(replica=2)},
        {**TWO_POOLS, **fault(pool="a", replica=2, node=1)},
        {"autoscaling": [SCALING], **fault(replica=8)},
        {"autoscaling": [SCALING], **fault(kind="node_down", node=1)},
        {"autoscaling": [SCALING], "admission": {"queue_limit": 5}},
        {"admission": {"queue_limit": 5}, **fault()},
        {"admission": {"replica_limit": 2, "queue_limit": 2, "shed": True, "order": "priority"}},
        {**TWO_POOLS, "router": {"kind": "by_length", "most_tokens": {"a": 9, "b": 99}}},
    ],
)
def test_what_matters_is_taken_also_from_a_configuration_that_names_every_key(cluster: dict[str, object]) -> None:
    described = Cluster.model_validate(cluster)
    check_heeded(described, URGENT)
    resolved = Cluster.model_validate(described.model_dump(mode="json"))
    assert resolved == described
    check_heeded(resolved, URGENT)
    check_heeded(Cluster.model_validate(Cluster().model_dump(mode="json")), PLAIN)


def test_deadlines_may_be_of_the_answer_or_of_its_first_token() -> None:
    cluster = Cluster.model_validate({"admission": {"replica_limit": 2, "drop_late": True}})
    for name in ("deadline_us", "ttft_slo_us"):
        check_heeded(cluster, replace(PLAIN, extra={name: (None, 5000, None)}))


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"autoscaling": [SCALING, SCALING]}, "autoscaling of pool 'default' is there twice"),
        ({"tiers": [HOST, HOST]}, "tier 'host' is there twice"),
    ],
)
def test_two_that_say_different_things_of_one_are_refused(cluster: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Cluster.model_validate(cluster)


@pytest.mark.parametrize("cluster", [{"router": "least_outstanding"}, {"clients": {"timeout_s": 1.0}}])
def test_several_processes_are_refused_where_there_is_but_one(spec: ReplicaSpec, cluster: dict[str, object]) -> None:
    workload = Workload("w", np.zeros(1, np.int64), np.ones(1, np.int32), np.ones(1, np.int32))
    with pytest.raises(InputError, match="processes=2: only what is dealt out"):
        serve_cluster(workload, Cluster.model_validate({"processes": 2, **cluster}), lambda _: spec, 0)


def test_a_pool_fills_its_nodes_and_no_two_pools_share_one() -> None:
    there, added = places_of(Cluster.model_validate(TWO_POOLS))
    assert there == [("a", 0), ("a", 0), ("a", 1), ("b", 3)]
    assert added == {"a": 2, "b": 4}
