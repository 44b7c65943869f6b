"""Prefill and decode apart in the compiled loop: the same to the byte as on SimPy's clock."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from random_clusters import random_workload, small_spec
from same import assert_same_fleet

from simkit.cluster import apart
from simkit.cluster.apart import is_plain, serve_apart
from simkit.cluster.checks import check_fleet
from simkit.cluster.handover import Disaggregation
from simkit.cluster.live import Rules, serve_live
from simkit.cluster.moving import Moving
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.topology import LinkSpec
from simkit.models.front_end import FrontEndLaw
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload


def on_the_clock(workload: Workload, members: list[Member], settings: Disaggregation) -> FleetResult:
    """The same fleet as a SimPy simulation."""
    rng = np.random.default_rng(0)
    return serve_live(workload, members, "disaggregated", None, Rules(), rng, moving=Moving(apart=settings))


def random_groups(seed: int) -> tuple[Workload, list[Member], Disaggregation]:
    """Up to three replicas of each role, in any order, with memory for few requests and links of any speed."""
    rng = np.random.default_rng([seed, 2])
    workload = random_workload(rng)
    if rng.random() < 0.3:
        workload = replace(workload, prefixes=None)
    members = []
    for pool in ("p", "d"):
        spec = small_spec(
            int(rng.choice([33, 40, 200])),
            int(rng.choice([1, 3, 8])),
            bool(pool == "d" or rng.random() < 0.7),
            bool(rng.random() < 0.6),
        )
        spec = replace(spec, front_end=FrontEndLaw(1e6, 2e3))
        members += [Member(spec, pool)] * int(rng.integers(1, 4))
    rng.shuffle(members)  # type: ignore[arg-type]
    link = LinkSpec(
        gb_per_s=float(rng.choice([0.0025, 0.01, 0.3, 10.0])), achieved=1.0, latency_us=float(rng.choice([0, 5, 1000]))
    )
    shared_by = str(rng.choice(["sender", "receiver", "all"]))
    return workload, members, Disaggregation(prefill=("p",), decode=("d",), link=link, shared_by=shared_by)  # type: ignore[arg-type]


def assert_same(one: FleetResult, other: FleetResult) -> None:
    assert_same_fleet(one, other)
    assert one.handover == other.handover
    assert np.array_equal(one.outside_ns, other.outside_ns)
    assert one.router == other.router


def same_both_ways(seed: int) -> FleetResult:
    workload, members, settings = random_groups(seed)
    assert is_plain(settings, members)
    fleet = serve_apart(workload, members, settings)
    assert_same(fleet, on_the_clock(workload, members, settings))
    check_fleet(fleet, workload)
    return fleet


def test_two_hundred_random_groups_are_the_same_as_on_the_clock() -> None:
    total: dict[str, int] = {"handed_over": 0, "local": 0, "rejected": 0, "preempted": 0, "hits": 0, "kept": 0}
    for seed in range(200):
        fleet = same_both_ways(seed)
        assert fleet.handover is not None
        total["handed_over"] += fleet.handover.handed_over
        total["local"] += fleet.handover.local
        total["kept"] += fleet.handover.most_kept_blocks
        total["rejected"] += fleet.accounts.rejected
        total["preempted"] += int(fleet.requests.preemptions.sum())
        total["hits"] += int(fleet.requests.hit_tokens.sum())
    # all that the loop knows happens in these
    assert min(total.values()) > 30, total


@pytest.mark.slow
def test_three_thousand_random_groups_are_the_same_as_on_the_clock() -> None:
    for seed in range(1_000, 4_000):
        same_both_ways(seed)


def test_nobody_comes() -> None:
    workload, members, settings = random_groups(1)
    nobody = selected(workload, np.zeros(0, dtype=np.int64))
    assert_same(serve_apart(nobody, members, settings), on_the_clock(nobody, members, settings))


def test_arrays_that_must_grow_change_nothing() -> None:
    grown = []
    roomier = apart.roomier
    for seed in range(30):
        workload, members, settings = random_groups(seed)
        with (
            patch.object(apart, "ROOMY", 0),
            patch.object(apart, "SPARE", 0.1),
            patch.object(apart, "LEAST_SPARE", 4),
            patch.object(apart, "roomier", lambda rack: grown.append(1) or roomier(rack)),
        ):
            fleet = serve_apart(workload, members, settings)
        assert_same(fleet, serve_apart(workload, members, settings))
    assert len(grown) > 5


def test_calls_of_any_length_change_nothing() -> None:
    told: list[int] = []
    for seed in range(20):
        workload, members, settings = random_groups(seed)
        with patch.object(apart, "EVENTS_A_CALL", 3):
            fleet = serve_apart(workload, members, settings, told.append)
        assert_same(fleet, serve_apart(workload, members, settings))
        assert told[-1] <= len(workload)
    assert len(told) > 100
