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
    next_interval,
    quantile_interval,
    recorded_interval,
    share_interval,
    student_t95,
)
from simkit.metrics.slo import promise
from simkit.plan.confidence import of_recording
from simkit.plan.fleet import replay_share
from simkit.plan.sweep import replay
from simkit.plan.traffic import resampled
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


def test_an_interval_of_a_recording_by_hand() -> None:
    """Samples e^-1, 1, e around 2: the logarithms' standard deviation is 1, t of two degrees 4.303."""
    samples = [math.exp(-1), 1.0, math.e]
    wanted = (2 * math.exp(-4.303), 2.0, 2 * math.exp(4.303))
    assert recorded_interval(2.0, samples, positive=True) == pytest.approx(wanted, rel=1e-3)
    assert recorded_interval(2.0, [1.0, 2.0, 3.0], positive=False) == pytest.approx((2 - 4.303, 2.0, 6.303), rel=1e-3)
    assert recorded_interval(0.0, [0.0, 0.0], positive=True) == (0.0, 0.0, 0.0)
    assert math.isnan(recorded_interval(2.0, [1.0], positive=True).low)
    assert math.isnan(recorded_interval(2.0, [1.0, math.nan], positive=True).low)


def test_more_samples_of_a_recording_do_not_narrow_its_interval() -> None:
    """Means of 400 exponentials, each resampled: the interval of one recording holds the truth, 20 samples or 200."""
    rng = np.random.default_rng(3)
    for count in (20, 200):
        held, narrow = 0, 0
        for _ in range(400):
            recording = rng.exponential(1.0, 400)
            samples = rng.choice(recording, (count, 400)).mean(axis=1).tolist()
            held += recorded_interval(float(recording.mean()), samples, positive=True).holds(1.0)
            narrow += around(float(np.mean(samples)), samples).holds(1.0)
        assert 0.92 <= held / 400 <= 0.98
        assert narrow / 400 < 0.5


def test_a_prediction_interval_by_hand() -> None:
    """1, 2, 3: standard deviation 1, t of two degrees 4.303, so 4.303 * sqrt(4 / 3) on either side of 2."""
    assert next_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.9687, 2.0, 2 + 4.9687), rel=1e-3)
    assert next_interval([2.0, 2.0]) == (2.0, 2.0, 2.0)
    assert math.isnan(next_interval([2.0]).low)
    assert math.isnan(next_interval([2.0, math.inf]).low)


def test_a_prediction_interval_holds_the_next_replication_however_many_there_were() -> None:
    rng = np.random.default_rng(5)
    for count in (2, 20, 100):
        held = sum(next_interval(one[:-1].tolist()).holds(one[-1]) for one in rng.normal(0.0, 1.0, (2000, count + 1)))
        assert 0.935 <= held / 2000 <= 0.965


@pytest.mark.slow
def test_a_recorded_days_interval_holds_the_truth_of_a_queue(
    single_server: ReplicaSpec, queue: Callable[[int, float, int, bool], Workload]
) -> None:
    """The engine as M/D/1, one day of 4,000 requests a trial as a trace of it, 20 block bootstraps each."""
    truths = {"queue_mean_s": LOAD / 2 / (1 - LOAD), "queue_p99_s": md1_wait_quantile(0.99, LOAD)}
    asked = promise(dict.fromkeys(truths, 1e9))
    held = dict.fromkeys(truths, 0)
    for trial in range(300):
        day = queue(4000, LOAD, trial, False)
        own = replay_share(single_server, day, 1, LOAD, asked)
        samples = [replay_share(single_server, resampled(day, seed), 1, LOAD, asked) for seed in range(20)]
        found = of_recording(own, samples)
        for key, truth in truths.items():
            held[key] += found[key].holds(truth)
    assert {key: 0.88 <= count / 300 <= 0.99 for key, count in held.items()} == dict.fromkeys(truths, True), held
