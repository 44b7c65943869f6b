"""Fleets of one-request servers against queueing theory.

Service is exponential and arrivals are Poisson, so exact means are known: M/M/1 for a random split (a split Poisson
stream is Poisson), Erlang's C as a bound from below (no dispatcher beats one central queue), and for two random
choices among many servers the mean-field limit, sum over i >= 1 of load^(2^i - 2) (Mitzenmacher 2001, theorem 3).
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from simkit.cluster.fleet import serve_fleet
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
