"""Do 95 % intervals hold the truth in 95 % of cases? On queues whose truth is known, a thousand trials each."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.intervals import (
    Interval,
    around,
    mean_interval,
    quantile_interval,
    share_interval,
    student_t95,
)
from simkit.plan.sweep import replay
from simkit.workloads.workload import Workload

TRIALS = 1000
REPLICATIONS = 10
LOAD = 0.5
F64 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def md1_wait_share(t: float, load: float) -> float:
    """P(wait <= t) of M/D/1 with service of 1 (Erlang 1909): a finite alternating sum."""
    terms = range(math.floor(t) + 1)
    return (1 - load) * sum((load * (k - t)) ** k / math.factorial(k) * math.exp(-load * (k - t)) for k in terms)


def md1_wait_quantile(q: float, load: float) -> float:
    low, high = 0.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if md1_wait_share(middle, load) < q else (low, middle)
    return low


def share_held(intervals: list[Interval], truth: float) -> float:
    return sum(interval.holds(truth) for interval in intervals) / len(intervals)


@pytest.mark.slow
def test_intervals_hold_the_truth_of_mm1_95_times_in_100() -> None:
    """Waits of M/M/1 by Lindley's recursion: mean load / (1 - load); 1 - load e^(-(1 - load) t) of them are below t."""
    rng = np.random.default_rng(1)
    n, warm_up = 12_000, 500
    means, tails = [], []
    for _ in range(TRIALS):
        steps = rng.exponential(1.0, (REPLICATIONS, n)) - rng.exponential(1 / LOAD, (REPLICATIONS, n))
        walk = np.cumsum(steps, axis=1)
        waits = (walk - np.minimum(np.minimum.accumulate(walk, axis=1), 0.0))[:, warm_up:]
        means.append(mean_interval(list(waits)))
        tails.append(quantile_interval(list(waits), 0.99))
    assert 0.93 <= share_held(means, LOAD / (1 - LOAD)) <= 0.97
    assert 0.93 <= share_held(tails, math.log(LOAD / 0.01) / (1 - LOAD)) <= 0.97


@pytest.mark.slow
def test_intervals_hold_the_truth_of_a_replica_of_known_step_times_95_times_in_100(
    single_server: ReplicaSpec, queue: Callable[[int, float, int, bool], Workload]
) -> None:
    """The engine as M/D/1: mean wait load / 2 (1 - load), percentiles by Erlang's formula."""
    n, warm_up = 4000, 200
    means, tails = [], []
    for trial in range(TRIALS):
        waits = []
        for part in range(REPLICATIONS):
            result = replay(single_server, queue(n, LOAD, REPLICATIONS * trial + part, False))
            waits.append(result.requests.queue_ns[warm_up:] / 1e9)
        means.append(mean_interval(waits))
        tails.append(quantile_interval(waits, 0.99))
    assert 0.93 <= share_held(means, LOAD / 2 / (1 - LOAD)) <= 0.97
    assert 0.93 <= share_held(tails, md1_wait_quantile(0.99, LOAD)) <= 0.97


def test_erlangs_formula_has_the_mean_of_pollaczek_and_khinchine() -> None:
    grid = np.linspace(0, 25, 5001)
    tail = np.array([1 - md1_wait_share(float(t), 0.5) for t in grid])
    assert np.trapezoid(tail, grid) == pytest.approx(0.5, rel=1e-3)


def test_students_t_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 5, 19, 30, 31, 60, 500):
        assert student_t95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-3)


def test_an_interval_by_hand() -> None:
    """1, 2, 3: standard deviation 1, so 4.303 / sqrt(3) on either side of 2."""
    assert around(2.0, [1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4843, 2.0, 2 + 2.4843), rel=1e-3)
    assert math.isnan(around(2.0, [2.0]).low)
    assert math.isnan(around(2.0, [2.0, math.nan]).low)


def test_wilsons_interval_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for successes, trials in ((0, 20), (7, 20), (20, 20)):
        wanted = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert share_interval(successes, trials) == pytest.approx(
            (wanted.low, successes / trials, wanted.high), abs=1e-6
        )
