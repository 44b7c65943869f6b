"""KV on links while replicas die, links break, clients leave, pools grow and sessions wait; times by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_clusters import small_spec

from simkit.cluster.checks import check_fleet
from simkit.cluster.handover import Disaggregation
from simkit.cluster.job import Job
from simkit.cluster.locality import Locality
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.result import Status
from simkit.workloads.workload import Prefixes, Workload

BLOCK_BYTES = 16 * 32 * 2 * 8 * 128 * 2  # 16 tokens of Llama-3.1-8B: 32 layers, K and V, 8 heads of 128, 2 bytes
KV_NS = 62 * BLOCK_BYTES  # of 1,000 tokens' full blocks, at 1 GB/s
S = 1_000_000_000


def asked(prompts: list[int], outputs: list[int], at_us: list[int] | None = None) -> Workload:
    return Workload(
        name="asked",
        arrival_us=np.array(at_us or [0] * len(prompts), dtype=np.int64),
        prompt_tokens=np.array(prompts, dtype=np.int32),
        output_tokens=np.array(outputs, dtype=np.int32),
    )


ONE = asked([1000], [20])


def serve(workload: Workload, spec: ReplicaSpec, prefills: int = 1, decodes: int = 1, **more: Any) -> FleetResult:
    """Replica 0 and on prefill, those after them decode; KV goes at 1 GB/s."""
    moved = {"prefill": ["p"], "decode": ["d"], "link": {"gb_per_s": 1.0, "achieved": 1.0}}
    described = {
        "pools": [{"name": "p", "replicas": prefills}, {"name": "d", "replicas": decodes}],
        "startup": {"load_gb_per_s": 1e4},
        **more,
        "disaggregation": {**moved, **more.get("disaggregation", {})},
    }
    fleet = serve_cluster(workload, Cluster.model_validate(described), lambda _: spec, 0)
    check_fleet(fleet, workload)
    return fleet


def ttft_ns(fleet: FleetResult, request: int = 0) -> int:
    columns = fleet.requests
    return int((columns.first_token_ns - columns.arrival_ns)[request])


def prefilled_ns(fleet: FleetResult, request: int = 0) -> int:
    """When the first prefill replica had computed a prompt."""
    return int(fleet.replicas[0].requests.finish_ns[request])


def fault(kind: str, at_ns: int, replica: int, for_s: float = 100.0) -> dict[str, object]:
    return {"schedule": [{"at_s": at_ns / S, "kind": kind, "replica": replica, "for_s": for_s}]}


@pytest.fixture(scope="module")
def clean(spec: ReplicaSpec) -> FleetResult:
    """One request, and nothing happens to it."""
    return serve(ONE, spec)


@pytest.fixture(scope="module")
def halfway_ns(clean: FleetResult) -> int:
    """A whole microsecond at which about half of its KV is there."""
    return (prefilled_ns(clean) + KV_NS // 2) // 1000 * 1000


def test_the_end_that_dies_decides_with_lost_jobs(spec: ReplicaSpec, clean: FleetResult, halfway_ns: int) -> None:
    """Of two decode replicas the one that waits for the KV crashes, with half of it there."""
    crash = fault("crash", halfway_ns, 1)
    there = halfway_ns - prefilled_ns(clean)  # bytes, 1 a ns

    failed = serve(ONE, spec, 1, 2, faults=crash, lost_jobs={"policy": "fail"})
    assert failed.requests.status.tolist() == [Status.FAILED]
    assert failed.handover is not None
    assert (failed.handover.bytes_moved, failed.handover.bytes_given_up) == (there, KV_NS - there)

    # all of it again, from the prompt on
    again = serve(ONE, spec, 1, 2, faults=crash, lost_jobs={"policy": "retry"})
    assert ttft_ns(again) == halfway_ns + ttft_ns(clean)
    assert again.replicas[0].computed_tokens == 2 * clean.replicas[0].computed_tokens
    assert again.accounts.resent == 1

    # the KV is still where it was computed, and is sent to the other
    resumed = serve(ONE, spec, 1, 2, faults=crash, lost_jobs={"policy": "resume"})
    assert ttft_ns(resumed) == ttft_ns(clean) + there
    assert resumed.replicas[0].computed_tokens == clean.replicas[0].computed_tokens
    assert resumed.requests.transfer_ns.tolist() == [KV_NS]
    assert resumed.handover is not None
    assert (resumed.handover.taken_up, resumed.handover.bytes_moved) == (1, KV_NS + there)
    assert resumed.accounts.resent == 0
    limited = serve(ONE, spec, 1, 2, faults=crash, lost_jobs={"policy": "resume", "most": 0})
    assert limited.requests.status.tolist() == [Status.FAILED]


@pytest.mark.parametrize("policy", ["retry", "resume"])
def test_kv_is_lost_with_the_replica_that_computed_it(
    spec: ReplicaSpec, clean: FleetResult, halfway_ns: int, policy: str
) -> None:
    fleet = serve(ONE, spec, 2, 1, faults=fault("crash", halfway_ns, 0), lost_jobs={"policy": policy})
    assert ttft_ns(fleet) == halfway_ns + ttft_ns(clean)
    assert fleet.accounts.resent == 1


@pytest.mark.parametrize("replica", [0, 1])
def test_a_broken_link_holds_kv_up(spec: ReplicaSpec, clean: FleetResult, halfway_ns: int, replica: int) -> None:
    """Either end loses its link for half a second, halfway through the transfer."""
    down = fault("link_down", halfway_ns, replica, for_s=0.5)
    up_ns = halfway_ns + S // 2
    resumed = serve(ONE, spec, faults=down, lost_jobs={"policy": "resume"})
    assert ttft_ns(resumed) == ttft_ns(clean) + up_ns - prefilled_ns(clean)
    retried = serve(ONE, spec, faults=down, lost_jobs={"policy": "retry"})
    # a prefill replica without a link gets nothing to do; one whose partner has none computes, and its KV waits
    ready_ns = up_ns + prefilled_ns(clean) if replica == 0 else up_ns
    assert ttft_ns(retried) == ttft_ns(clean) + ready_ns - prefilled_ns(clean)
    with pytest.raises(ValueError, match="link_down is of links that KV goes over"):
        Cluster.model_validate({"faults": down})


def test_two_link_failures_at_once_end_with_the_later(spec: ReplicaSpec, clean: FleetResult, halfway_ns: int) -> None:
    both = [
        {"at_s": halfway_ns / S, "kind": "link_down", "replica": 0, "for_s": 0.9},
        {"at_s": halfway_ns / S, "kind": "link_down", "pool": "p", "for_s": 0.2},
    ]
    fleet = serve(ONE, spec, faults={"schedule": both}, lost_jobs={"policy": "resume"})
    assert ttft_ns(fleet) == ttft_ns(clean) + halfway_ns + 9 * S // 10 - prefilled_ns(clean)


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_client_that_leaves_gives_its_share_of_the_link_back(spec: ReplicaSpec, layerwise: bool) -> None:
    """The first gives up after 100 ms, in the middle of its transfer; the second has the link to itself from then."""
    workload = asked([1000, 300], [2, 2], [0, 50_000])
    fleet = serve(workload, spec, clients={"timeout_s": 0.1}, disaggregation={"layerwise": layerwise})
    assert fleet.requests.status.tolist() == [Status.TIMED_OUT, Status.FINISHED]
    if layerwise:
        return
    begins_ns = prefilled_ns(fleet, 1)
    shared_ns = 100_000_000 - begins_ns
    assert fleet.requests.transfer_ns[1] == pytest.approx(18 * BLOCK_BYTES + shared_ns / 2, abs=2)
    assert fleet.handover is not None
    assert fleet.handover.bytes_given_up == pytest.approx(
        62 * BLOCK_BYTES - (begins_ns - prefilled_ns(fleet)) - shared_ns / 2, abs=2
    )


def test_a_session_s_next_turn_follows_the_answer(spec: ReplicaSpec) -> None:
    workload = replace(asked([1000, 1200], [20, 20]), session_id=("s", "s"), extra={"think_us": (None, 250_000)})
    fleet = serve(workload, spec, sessions={"replay": "closed"})
    columns = fleet.requests
    assert columns.arrival_ns.tolist() == [0, int(columns.finish_ns[0]) + 250_000_000]


def test_pools_grow_apart_each_by_its_own_queue(spec: ReplicaSpec) -> None:
    """No decode replica at first: prompts are computed, wait with their KV, and only the decode pool grows."""
    rule = {"most": 3, "interval_s": 0.1, "rule": {"kind": "queue", "target": 2}, "down_stabilization_s": 1000.0}
    scaling = [{**rule, "pool": "p"}, {**rule, "pool": "d", "least": 0}]
    workload = asked([1000] * 3, [400] * 3, [0, 200_000, 400_000])
    fleet = serve(workload, spec, 1, 0, autoscaling=scaling, startup={"provision_s": 0.55, "load_gb_per_s": 1e4})
    assert [life.pool for life in fleet.lives].count("p") == 1
    decodes = [life for life in fleet.lives if life.pool == "d"]
    # at 0.1 s one KV waits: one replica; at 0.5 s three do: two
    assert [life.asked_ns for life in decodes] == [S // 10, S // 2]
    ready_ns = decodes[0].ready_ns
    assert ready_ns is not None
    assert ttft_ns(fleet) > ready_ns > 6 * S // 10
    assert (fleet.requests.status == Status.FINISHED).all()


def test_a_shared_store_outlives_the_replica_and_adds_up_with_the_handover(spec: ReplicaSpec) -> None:
    """The second request finds its 768 shared tokens in the store after the prefill replica has lost its cache."""
    ids, start = np.array([1, 2, 3, 1, 2, 3], dtype=np.int64), np.array([0, 3, 6], dtype=np.int64)
    workload = replace(asked([1000, 1000], [3, 3], [0, 10_000_000]), prefixes=Prefixes(256, start, ids))
    store = [{"name": "store", "capacity_gib": 10, "shared": True, "link": {"gb_per_s": 2.0, "achieved": 1.0}}]
    crashes = [
        {"at_s": 5.0, "kind": "crash", "replica": 0, "for_s": 0.1},
        {"at_s": 5.0, "kind": "crash", "replica": 1, "for_s": 0.1},
    ]
    fleet = serve(workload, spec, faults={"schedule": crashes}, tiers=store)
    assert fleet.requests.hit_tokens.tolist() == [0, 768]
    assert fleet.requests.transfer_ns.tolist() == [KV_NS, KV_NS + 48 * BLOCK_BYTES // 2]
    assert fleet.tiers[0].hit_tokens == 768
    own = [{**store[0], "shared": False}]
    assert serve(workload, spec, faults={"schedule": crashes}, tiers=own).requests.hit_tokens.tolist() == [0, 0]


def test_limits_at_the_door_hold_where_prefill_is_apart(spec: ReplicaSpec) -> None:
    """One at a time on the prefill replica and one in the queue: the third of three at once is told 429."""
    fleet = serve(asked([1000] * 3, [5] * 3), spec, 1, 2, admission={"replica_limit": 1, "queue_limit": 1})
    assert fleet.requests.status.tolist() == [Status.FINISHED, Status.FINISHED, Status.REJECTED]
    # the second is prefilled once the first is
    first, second = fleet.replicas[0].requests.finish_ns.tolist()
    assert fleet.replicas[0].requests.arrival_ns.tolist() == [0, first]
    assert second > first


def test_a_router_chooses_among_prefill_replicas(spec: ReplicaSpec) -> None:
    workload = asked([500] * 6, [5] * 6, [10_000 * i for i in range(6)])
    fleet = serve(workload, spec, 3, 1, router="round_robin")
    assert [len(result.requests) for result in fleet.replicas] == [2, 2, 2, 6]
    assert fleet.router == "round_robin"


def test_an_answer_that_outgrew_prefill_is_taken_up_where_it_decodes(spec: ReplicaSpec) -> None:
    """Prefill takes 128 tokens: a prompt of 120 goes there, with 20 tokens more, after a crash, it does not."""
    locality = Locality(
        Disaggregation(), asked([120], [60]), [Member(small_spec(40, 3, True, True), "prefill"), Member(spec, "decode")]
    )
    new, grown = Job(0, 0, 120, 60, 180), Job(0, 0, 140, 40, 180)
    assert [locality.is_too_long(job) for job in (new, grown)] == [False, False]
    assert [locality.is_local(job, 0, []) for job in (new, grown)] == [False, True]
    long = Locality(
        Disaggregation(), asked([140], [40]), [Member(small_spec(40, 3, True, True), "prefill"), Member(spec, "decode")]
    )
    assert long.is_too_long(grown)


def test_an_update_waits_for_kv_to_be_fetched(spec: ReplicaSpec, clean: FleetResult, halfway_ns: int) -> None:
    """Told to go in the middle of a transfer, both ends stay until it is through, and nothing is lost."""
    fleet = serve(ONE, spec, faults=fault("update", halfway_ns, 0, for_s=0.1))
    assert fleet.accounts.resent == 0
    assert ttft_ns(fleet) == ttft_ns(clean)
    assert fleet.lives[0].ended_ns == prefilled_ns(clean) + KV_NS
    target = serve(ONE, spec, faults=fault("update", halfway_ns, 1, for_s=0.1))
    assert ttft_ns(target) == ttft_ns(clean)
    assert target.lives[1].ended_ns == int(clean.replicas[1].requests.finish_ns[0])
