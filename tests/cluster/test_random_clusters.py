"""Small clusters in which everything goes wrong at random: nothing is lost, nothing leaks, all of them end."""

from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from random_clusters import random_cluster, random_moving_cluster
from same import assert_same_columns

from simkit.cluster.checks import BALANCE, BLOCKS, LATENCY, WHOLE, check_fleet
from simkit.cluster.kv_flow import KvFlow
from simkit.cluster.kv_station import KvStation
from simkit.cluster.roster import Life
from simkit.cluster.serve import serve_cluster
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


@pytest.mark.slow
def test_ten_thousand_random_clusters() -> None:
    for seed in range(5_000):
        checked_run(seed)
        checked_moving_run(seed)


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
