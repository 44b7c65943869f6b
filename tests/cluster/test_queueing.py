"""Fleets of one-request servers against queueing theory.

Service is exponential and arrivals are Poisson, so exact means are known: M/M/1 for a random split (a split Poisson
stream is Poisson), Erlang's C as a bound from below (no dispatcher beats one central queue), and for two random
choices among many servers the mean-field limit, sum over i >= 1 of load^(2^i - 2) (Mitzenmacher 2001, theorem 3).
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from simkit.cluster.fleet import serve_fleet
from simkit.cluster.result import FleetResult
from simkit.cluster.routers import View
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import ReplicaSpec

SERVICE_S = 0.01
Markovian = Callable[..., object]


def mean_waits_s(spec: ReplicaSpec, markovian: Markovian, router: str, servers: int, load: float) -> np.ndarray:
    """[20] mean wait of each replication, without its first tenth."""
    waits = []
    for seed in range(20):
        workload = markovian(6000, load * servers / SERVICE_S, SERVICE_S, seed)
        fleet = serve_fleet(workload, [spec] * servers, router, seed)
        waits.append(fleet.requests.queue_ns[600:].mean() / 1e9)
    return np.array(waits)


def interval(values: np.ndarray, confidence: float = 0.99) -> tuple[float, float]:
    """Student's interval of the mean."""
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def erlang_c_wait_s(servers: int, load: float) -> float:
    """Mean wait in M/M/c: C(c, a) / (c mu - lambda), by the recursion of Erlang's B."""
    offered = servers * load
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    waiting = blocked / (1 - load * (1 - blocked))
    return waiting * SERVICE_S / (servers * (1 - load))


def test_random_split_is_as_many_mm1_queues(single_server: ReplicaSpec, markovian: Markovian) -> None:
    low, high = interval(mean_waits_s(single_server, markovian, "random", 4, 0.6))
    exact = 0.6 / (1 - 0.6) * SERVICE_S
    assert low < exact < high
    assert (high - low) / exact < 0.2


def test_fewer_outstanding_means_less_waiting(single_server: ReplicaSpec, markovian: Markovian) -> None:
    names = ("least_outstanding", "power_of_two", "round_robin", "random")
    waits = {name: mean_waits_s(single_server, markovian, name, 4, 0.8) for name in names}
    # paired: the same arrivals and services for all
    for better, worse in (names[0:2], names[1:3], names[2:4]):
        low, _ = interval(waits[worse] - waits[better])
        assert low > 0, (better, worse)
    central = erlang_c_wait_s(4, 0.8)
    assert interval(waits["least_outstanding"])[0] > central
    # joining the shortest of 4 queues comes near one central queue
    assert waits["least_outstanding"].mean() < 1.5 * central


def test_two_choices_of_many_servers_meet_the_mean_field_limit(
    single_server: ReplicaSpec, markovian: Markovian
) -> None:
    load, servers = 0.9, 100
    workload = markovian(120_000, load * servers / SERVICE_S, SERVICE_S, 3)
    fleet = serve_fleet(workload, [single_server] * servers, "power_of_two", 3)
    e2e_s = (fleet.requests.finish_ns - fleet.requests.arrival_ns)[20_000:].mean() / 1e9
    limit = sum(load ** (2**i - 2) for i in range(1, 12)) * SERVICE_S
    assert e2e_s == pytest.approx(limit, rel=0.05)


def test_erlang_c_of_the_textbook() -> None:
    """c = 2, load 0.5: C = 1/3, so the wait is a third of a service (Kleinrock, Queueing Systems I, 3.5)."""
    assert erlang_c_wait_s(2, 0.5) == pytest.approx(SERVICE_S / 3)


def behind_a_door(
    spec: ReplicaSpec,
    markovian: Markovian,
    servers: int,
    load: float,
    queue_limit: int | None,
    requests: int,
    seed: int,
) -> FleetResult:
    """Servers that get one request at a time from one queue at the door."""
    cluster = Cluster.model_validate(
        {"replicas": servers, "router": "random", "admission": {"replica_limit": 1, "queue_limit": queue_limit}}
    )
    workload = markovian(requests, load * servers / SERVICE_S, SERVICE_S, seed)
    return serve_cluster(workload, cluster, lambda _: spec, seed)


def test_one_queue_at_the_door_is_erlang_c(single_server: ReplicaSpec, markovian: Markovian) -> None:
    waits = []
    for seed in range(16):
        fleet = behind_a_door(single_server, markovian, 4, 0.8, None, 4000, seed)
        waits.append(fleet.requests.queue_ns[400:].mean() / 1e9)
    low, high = interval(np.array(waits))
    exact = erlang_c_wait_s(4, 0.8)
    assert low < exact < high
    assert (high - low) / exact < 0.35


def test_no_queue_at_the_door_is_erlang_b(single_server: ReplicaSpec, markovian: Markovian) -> None:
    """M/M/c/c: a share of B(c, a) is turned away, by the recursion of Erlang's B."""
    lost = []
    for seed in range(16):
        fleet = behind_a_door(single_server, markovian, 3, 0.9, 0, 3000, seed)
        assert fleet.accounts.rejected + fleet.accounts.finished == 3000
        lost.append(fleet.accounts.rejected / 3000)
    blocked = 1.0
    for k in range(1, 4):
        blocked = 2.7 * blocked / (k + 2.7 * blocked)
    low, high = interval(np.array(lost))
    assert low < blocked < high
    assert (high - low) / blocked < 0.12


class Watch:
    """Sends by a fixed draw, and notes how many requests the replica has that it sends to."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.seen: list[list[int]] = [[], [], []]

    def choose(self, request: int, fleet: View) -> int:
        replica = int(self._rng.random() * len(fleet))
        self.seen[replica].append(fleet.outstanding(replica))
        return replica


def test_littles_law_at_each_station(single_server: ReplicaSpec, markovian: Markovian) -> None:
    """Poisson arrivals see time averages: the mean number they find at a replica is its arrival rate x time there."""
    workload = markovian(30_000, 0.7 * 3 / SERVICE_S, SERVICE_S, 1)
    watch = Watch(np.random.default_rng(2))
    fleet = serve_fleet(workload, [single_server] * 3, watch)
    for seen, result in zip(watch.seen, fleet.replicas, strict=True):
        arrival, finish = result.requests.arrival_ns, result.requests.finish_ns
        number = len(arrival) / (arrival[-1] - arrival[0]) * (finish - arrival).mean()
        assert np.mean(seen) == pytest.approx(number, rel=0.04)


def finite_source(users: int, think_s: float) -> float:
    """Requests a second of M/M/1//N: N users who think, one server (Kleinrock, Queueing Systems I, 3.8)."""
    ratio = SERVICE_S / think_s
    weights = [math.factorial(users) / math.factorial(users - k) * ratio**k for k in range(users + 1)]
    return (1 - weights[0] / sum(weights)) / SERVICE_S


def test_users_who_think_are_a_finite_source(single_server: ReplicaSpec, markovian: Markovian) -> None:
    users, think_s, turns = 6, 0.03, 2500
    rng = np.random.default_rng(5)
    workload = markovian(users * turns, 100.0, SERVICE_S, 5)
    thinks = rng.exponential(think_s * 1e6, len(workload)).astype(np.int64)
    closed = replace(
        workload,
        session_id=tuple(f"user-{i % users}" for i in range(len(workload))),
        extra={"think_us": tuple(thinks.tolist())},
    )
    cluster = Cluster.model_validate({"replicas": 1, "sessions": {"replay": "closed", "users": users}})
    fleet = serve_cluster(closed, cluster, lambda _: single_server, 0)
    assert fleet.accounts.finished == len(workload)
    ends = np.sort(fleet.requests.finish_ns)
    # the middle of the run: all users are there from the start, and some are done before others at the end
    first, last = len(ends) // 10, len(ends) * 8 // 10
    rate = (last - first) / (ends[last] - ends[first]) * 1e9
    assert rate == pytest.approx(finite_source(users, think_s), rel=0.03)
