"""Small clusters in which everything goes wrong at random: nothing is lost, nothing leaks, all of them end."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from random_clusters import random_cluster, random_lockstep_cluster, random_moving_cluster
from same import assert_same_columns, assert_same_fleet

from simkit.cluster.checks import BALANCE, BLOCKS, LATENCY, WHOLE, check_fleet
from simkit.cluster.kv_flow import KvFlow
from simkit.cluster.kv_station import KvStation
from simkit.cluster.lockstep import Lockstep
from simkit.cluster.roster import Life
from simkit.cluster.serve import serve_cluster
from simkit.cluster.station import Station
from simkit.cluster.way import Straight, Way
from simkit.engine.deployment import Deployment, ReplicaSpec
from simkit.engine.violation import Violation
from simkit.metrics.result import Status


def given(spec: ReplicaSpec, deployment: Deployment | None) -> ReplicaSpec:
    """Every pool is made of the same."""
    return spec


def checked_run(seed: int) -> Counter[str]:
    """One cluster from beginning to end; its accounts."""
    workload, cluster, spec = random_cluster(seed)
    fleet = serve_cluster(workload, cluster, lambda _: spec, seed)
    check_fleet(fleet, workload)
    return Counter(asdict(fleet.accounts))


def test_three_hundred_random_clusters() -> None:
    total: Counter[str] = Counter()
    for seed in range(300):
        total += checked_run(seed)
    # all that can become of a request does in these
    for outcome in ("finished", "rejected", "timed_out", "failed", "never_asked", "retries", "resent"):
        assert total[outcome] > 30, outcome


def checked_moving_run(seed: int) -> Counter[str]:
    """The same of one in which KV is moved, with what became of that."""
    workload, cluster, spec = random_moving_cluster(seed)
    stations: list[KvStation] = []
    new_station = KvFlow.station

    def noted(flow: KvFlow, life: Life) -> KvStation:
        stations.append(new_station(flow, life))
        return stations[-1]

    with patch.object(KvFlow, "station", noted):
        fleet = serve_cluster(workload, cluster, lambda _: spec, seed)
    check_fleet(fleet, workload)
    for station in stations:
        if fleet.lives[station.life].ended_ns is None:
            assert station.promised_blocks == 0
    total = Counter(asdict(fleet.accounts))
    if fleet.handover is not None:
        total += Counter(asdict(fleet.handover))
    for tier in fleet.tiers:
        total += Counter(hit_tokens=tier.hit_tokens, evicted_bytes=tier.evicted_bytes)
    return total


def test_a_hundred_and_fifty_random_clusters_that_move_kv() -> None:
    total: Counter[str] = Counter()
    for seed in range(150):
        total += checked_moving_run(seed)
    for outcome in ("finished", "rejected", "timed_out", "failed", "never_asked", "retries", "resent"):
        assert total[outcome] > 30, outcome
    for moved in ("handed_over", "local", "taken_up", "bytes_given_up", "hit_tokens", "evicted_bytes"):
        assert total[moved] > 30, moved


def checked_lockstep_run(seed: int) -> Counter[str]:
    """The same of one in which engines share experts: those of a group come and go together."""
    workload, cluster, spec, sharing = random_lockstep_cluster(seed)
    stations: list[KvStation] = []
    new_station = KvFlow.station

    def noted(flow: KvFlow, life: Life) -> KvStation:
        stations.append(new_station(flow, life))
        return stations[-1]

    with patch.object(KvFlow, "station", noted):
        fleet = serve_cluster(workload, cluster, lambda own: spec if own is None else sharing, seed)
    check_fleet(fleet, workload)
    for station in stations:
        if fleet.lives[station.life].ended_ns is None:
            assert station.promised_blocks == 0
    of_groups = {pool.name for pool in cluster.all_pools() if pool.deployment is not None}
    times = Counter(
        (life.pool, life.number, life.asked_ns, life.ready_ns, life.ended_ns)
        for life in fleet.lives
        if life.pool in of_groups
    )
    assert max(times.values(), default=1) == 1
    together = Counter((pool, *when) for pool, _, *when in times)
    engines = sharing.deployment.layout.data
    assert all(count % engines == 0 for count in together.values())
    total = Counter(asdict(fleet.accounts))
    if fleet.handover is not None:
        total += Counter(asdict(fleet.handover))
    return total


def test_two_hundred_random_clusters_of_engines_that_share_experts() -> None:
    total: Counter[str] = Counter()
    # in the last, the replica where one was to decode loses its links while the one that prefills reads a tier
    for seed in (*range(200), 400):
        total += checked_lockstep_run(seed)
    for outcome in ("finished", "rejected", "timed_out", "failed", "never_asked", "retries", "resent", "handed_over"):
        assert total[outcome] > 30, outcome


@pytest.mark.parametrize("seed", range(60))
def test_who_shares_with_nobody_is_a_replica_like_any(seed: int) -> None:
    """Every replica as a group of its own, run by the loop of those that share, in whatever happens."""
    workload, cluster, spec = random_cluster(seed) if seed % 2 else random_moving_cluster(seed)
    plain = serve_cluster(workload, cluster, lambda _: spec, seed)

    def grouped(new_station: Callable[[Way, Life], Station]) -> Callable[[Way, Life], Station]:
        def station(way: Way, life: Life) -> Station:
            alone = new_station(way, life)
            Lockstep([alone])
            return alone

        return station

    with (
        patch.object(KvFlow, "station", grouped(KvFlow.station)),
        patch.object(Straight, "station", grouped(Straight.station)),
        patch("simkit.cluster.serve.serve_fleet", side_effect=AssertionError("not on the clock")),
    ):
        same = serve_cluster(workload, cluster, lambda _: spec, seed)
    assert_same_fleet(plain, same)
    assert (plain.handover, plain.tiers) == (same.handover, same.tiers)


@pytest.mark.slow
def test_ten_thousand_random_clusters() -> None:
    for seed in range(5_000):
        checked_run(seed)
        checked_moving_run(seed)
        checked_lockstep_run(seed)


def test_same_seed_same_history() -> None:
    for seed in range(40):
        workload, cluster, spec = random_cluster(seed)
        one, other = (serve_cluster(workload, cluster, partial(given, spec), seed) for _ in range(2))
        assert np.array_equal(one.requests.finish_ns, other.requests.finish_ns)
        assert one.accounts == other.accounts
        assert one.lives == other.lives


def test_same_seed_same_history_of_what_is_moved() -> None:
    for seed in range(15):
        workload, cluster, spec = random_moving_cluster(seed)
        one, other = (serve_cluster(workload, cluster, partial(given, spec), seed) for _ in range(2))
        assert_same_columns(one.requests, other.requests)
        assert (one.accounts, one.lives, one.handover, one.tiers) == (
            other.accounts, other.lives, other.handover, other.tiers,
        )  # fmt: skip


def test_the_checker_sees_what_is_wrong() -> None:
    workload, cluster, spec = random_cluster(7)
    fleet = serve_cluster(workload, cluster, lambda _: spec, 7)
    check_fleet(fleet, workload)
    done = int(np.flatnonzero(fleet.requests.status == Status.FINISHED)[0])

    def spoilt(name: str) -> np.ndarray:
        column = getattr(fleet.requests, name).copy()
        column[done] += 1
        return column

    lost = replace(fleet, accounts=replace(fleet.accounts, finished=fleet.accounts.finished - 1))
    short = replace(fleet, requests=replace(fleet.requests, generated_tokens=spoilt("generated_tokens")))
    late = replace(fleet, requests=replace(fleet.requests, queue_ns=spoilt("queue_ns")))
    alive = next(i for i, life in enumerate(fleet.lives) if life.ended_ns is None)
    leaking = list(fleet.replicas)
    leaking[alive] = replace(leaking[alive], blocks_free_at_end=leaking[alive].blocks - 1)
    leaky = replace(fleet, replicas=tuple(leaking))
    for wrong, rule in ((lost, BALANCE), (short, WHOLE), (late, LATENCY), (leaky, BLOCKS)):
        with pytest.raises(Violation, match=rule.split("+")[0]):
            check_fleet(wrong, workload)
