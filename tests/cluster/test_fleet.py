"""A fleet loses nobody, and is made of replicas that behave as they do alone."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from same import assert_same_columns, assert_same_run

from simkit.cluster.fleet import serve_fleet
from simkit.cluster.routers import ROUTERS, View
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.simulate import simulate
from simkit.errors import InputError
from simkit.metrics.result import WATERFALL, Status
from simkit.models.steptables import scaled
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

Chats = Callable[[int, float, int], Workload]
NAMED = [name for name in ROUTERS if name != "by_length"]  # which must be told of pools


class OneByOne:
    """Round robin that is asked request by request, and looks at the load of everybody each time."""

    def choose(self, request: int, fleet: View) -> int:
        assert all(fleet.outstanding(replica) >= 0 for replica in range(len(fleet)))
        return request % len(fleet)


@pytest.mark.parametrize("router", NAMED)
def test_fleet_of_one_is_the_replica_itself(router: str, spec: ReplicaSpec, chats: Chats) -> None:
    workload = chats(300, 20.0, 1)
    alone = simulate(workload, spec.limits, spec.tables, spec.num_blocks)
    assert alone.requests.preemptions.sum() > 0
    assert alone.requests.hit_tokens.sum() > 0
    fleet = serve_fleet(workload, [spec], router)
    assert_same_run(fleet.replicas[0], alone)
    assert_same_columns(fleet.requests, alone.requests)


def test_round_robin_of_two_is_two_replicas_of_half_the_requests(spec: ReplicaSpec, chats: Chats) -> None:
    workload = chats(400, 40.0, 2)
    fleet = serve_fleet(workload, [spec, spec], "round_robin")
    for i in (0, 1):
        half = selected(workload, np.arange(i, len(workload), 2))
        assert_same_run(fleet.replicas[i], simulate(half, spec.limits, spec.tables, spec.num_blocks))
        assert np.array_equal(fleet.requests.finish_ns[i::2], fleet.replicas[i].requests.finish_ns)
    assert fleet.replica_of.tolist() == [0, 1] * 200


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), replicas=st.integers(1, 4), rate_per_s=st.sampled_from([5.0, 50.0, 1000.0]))
def test_looking_at_replicas_changes_nothing(
    spec: ReplicaSpec, chats: Chats, seed: int, replicas: int, rate_per_s: float
) -> None:
    workload = chats(60, rate_per_s, seed)
    blind = serve_fleet(workload, [spec] * replicas, "round_robin")
    looked = serve_fleet(workload, [spec] * replicas, OneByOne())
    for a, b in zip(blind.replicas, looked.replicas, strict=True):
        assert_same_run(a, b)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), replicas=st.integers(1, 5), router=st.sampled_from(sorted(NAMED)))
def test_nobody_is_lost(spec: ReplicaSpec, chats: Chats, seed: int, replicas: int, router: str) -> None:
    workload = chats(80, 100.0, seed)
    # every seventh asks for more than the context holds
    long = replace(workload, output_tokens=np.where(np.arange(80) % 7 == 0, 4000, workload.output_tokens))
    fleet = serve_fleet(long, [spec] * replicas, router, seed)
    assert fleet.complete
    assert sum(len(result.requests) for result in fleet.replicas) == len(long)
    assert np.array_equal(fleet.requests.status == Status.REJECTED, np.arange(80) % 7 == 0)
    done = fleet.requests.status == Status.FINISHED
    assert done.sum() == 80 - 12
    assert np.array_equal(fleet.requests.generated_tokens[done], long.output_tokens[done])
    parts = sum(getattr(fleet.requests, part) for part in WATERFALL)
    assert np.array_equal(parts[done], (fleet.requests.finish_ns - fleet.requests.arrival_ns)[done])
    for i, result in enumerate(fleet.replicas):
        assert result.blocks_free_at_end == result.blocks
        mine = np.flatnonzero(fleet.replica_of == i)
        assert np.array_equal(result.requests.finish_ns[fleet.row_of[mine]], fleet.requests.finish_ns[mine])


def test_outstanding_is_what_arrived_less_what_finished(spec: ReplicaSpec, chats: Chats) -> None:
    """The count that routers see never knows of a step's end before its time."""
    workload = chats(300, 60.0, 5)
    seen: list[list[int]] = []

    class Watch:
        def choose(self, request: int, fleet: View) -> int:
            seen.append([fleet.outstanding(replica) for replica in range(len(fleet))])
            return request * 7 % 3

    fleet = serve_fleet(workload, [spec] * 3, Watch())
    arrival, finish = fleet.requests.arrival_ns, fleet.requests.finish_ns
    for request in range(len(workload)):
        before = np.arange(len(workload)) < request
        now = arrival[request]
        for replica in range(3):
            there = before & (fleet.replica_of == replica) & (finish > now)
            assert seen[request][replica] == there.sum(), (request, replica)
    assert max(map(max, seen)) > 3


def test_replicas_may_differ(spec: ReplicaSpec, chats: Chats) -> None:
    """A replica whose steps take half the time answers more of what is sent where least is outstanding."""
    fast = replace(spec, tables=scaled(spec.tables, 0.5))
    workload = chats(400, 30.0, 6)
    fleet = serve_fleet(workload, [spec, fast], "least_outstanding")
    shares = np.bincount(fleet.replica_of)
    assert Fraction(int(shares[1]), int(shares[0])) > Fraction(5, 4)


def test_same_seed_same_fleet(spec: ReplicaSpec, chats: Chats) -> None:
    workload = chats(100, 50.0, 7)
    one, same, other = (serve_fleet(workload, [spec] * 4, "power_of_two", seed) for seed in (1, 1, 2))
    assert np.array_equal(one.replica_of, same.replica_of)
    assert_same_columns(one.requests, same.requests)
    assert not np.array_equal(one.replica_of, other.replica_of)


def test_interrupted_fleet_says_so(spec: ReplicaSpec, chats: Chats) -> None:
    class Impatient:
        def choose(self, request: int, fleet: View) -> int:
            if request == 50:
                raise KeyboardInterrupt
            return min(range(len(fleet)), key=fleet.outstanding)

    fleet = serve_fleet(chats(100, 50.0, 8), [spec] * 2, Impatient())
    assert not fleet.complete
    assert (fleet.replica_of[50:] == -1).all()
    assert (fleet.replica_of[:50] >= 0).all()
    assert (fleet.requests.status[50:] == Status.UNFINISHED).all()


def test_bad_input_is_one_clear_line(spec: ReplicaSpec, chats: Chats) -> None:
    class Lost:
        def choose(self, request: int, fleet: View) -> int:
            return len(fleet)

    workload = chats(10, 50.0, 9)
    with pytest.raises(InputError, match="did you mean 'round_robin'"):
        serve_fleet(workload, [spec], "round-robin")
    with pytest.raises(InputError, match="needs at least one"):
        serve_fleet(workload, [], "random")
    with pytest.raises(InputError, match="Lost: sent request 0 to replica 2; there are 0 to 1"):
        serve_fleet(workload, [spec] * 2, Lost())
    with pytest.raises(InputError, match="seed -1"):
        serve_fleet(workload, [spec], "random", -1)
