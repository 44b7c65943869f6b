"""Whether a stored profile still holds."""

import numpy as np
import pytest

from simkit.calibrate.check import chosen_points, drift_of, median_interval
from simkit.calibrate.points import Point
from simkit.calibrate.timing import Timing


def stored(count: int = 40) -> dict[Point, Timing]:
    points = [Point("gemm", ("bf16", tokens, 64, 64)) for tokens in range(1, count)]
    points += [Point("sampling", ("greedy", rows, 1000)) for rows in range(1, 11)]
    return {point: Timing(1000.0 + 10.0 * i, 990.0, 1010.0 + 10.0 * i, 10) for i, point in enumerate(points)}


def scaled(timings: dict[Point, Timing], factor: float, noise: float, table: str = "") -> dict[Point, Timing]:
    rng = np.random.default_rng(5)
    return {
        point: timing._replace(
            median_ns=timing.median_ns * rng.lognormal(0.0, noise) * (factor if table in ("", point.table) else 1.0)
        )
        for point, timing in timings.items()
    }


def test_an_unchanged_device_holds() -> None:
    drift = drift_of(stored(), scaled(stored(), 1.0, 0.03))
    assert drift is not None
    assert drift.holds
    assert drift.low <= drift.drift <= drift.high
    assert abs(drift.drift) < 0.02


@pytest.mark.parametrize("factor", [0.88, 1.12])
def test_a_device_that_moved_does_not_hold(factor: float) -> None:
    drift = drift_of(stored(), scaled(stored(), factor, 0.03))
    assert drift is not None
    assert not drift.holds
    assert drift.drift == pytest.approx(factor - 1.0, abs=0.02)


def test_one_table_that_moved_does_not_hold() -> None:
    """A new version of one kernel: the median over all points does not see it."""
    drift = drift_of(stored(), scaled(stored(), 1.5, 0.02, table="sampling"))
    assert drift is not None
    assert abs(drift.drift) < 0.02
    assert not drift.holds
    assert {moved.point.table for moved in drift.worst} == {"sampling"}


def test_too_few_noisy_points_are_not_enough_to_say_that_it_holds() -> None:
    few = dict(list(stored().items())[:6])
    drift = drift_of(few, scaled(few, 1.0, 0.2))
    assert drift is not None
    assert not drift.holds


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_points_that_agree_are_not_enough_either(count: int) -> None:
    """The budget ended after them: a 95 % interval of a median needs six (1 - 2 / 2^5 = 0.94), whatever they say."""
    few = dict(list(stored().items())[:count])
    drift = drift_of(few, few)
    assert drift is not None
    assert not drift.holds


def test_nothing_in_common_says_nothing() -> None:
    assert drift_of(stored(), {Point("host", ("launch", 0, 0)): Timing(1.0, 1.0, 1.0, 5)}) is None


def test_points_are_drawn_from_every_table() -> None:
    drawn = [planned.point.table for planned in chosen_points(stored(), 16, seed=0)]
    assert (drawn.count("gemm"), drawn.count("sampling")) == (8, 8)
    drawn = [planned.point.table for planned in chosen_points(stored(), 30, seed=0)]
    assert (drawn.count("gemm"), drawn.count("sampling")) == (20, 10)
    assert len(chosen_points(stored(), 500, seed=0)) == len(stored())


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        _, low, high = median_interval(rng.normal(1.0, 0.1, 50), rng)
        covered += low <= 1.0 <= high
    assert covered / 200 > 0.9
