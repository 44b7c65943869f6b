"""Which repeats are believed, what is kept of them, and what sentinels tell."""

import numpy as np
import pytest

from simkit.calibrate.sentinel import Reading, pace, summary
from simkit.calibrate.timing import LEAST_REPEATS, MOST_REPEATS, Repeat, Visit, believed, timing_of, visit

from .fake_device import FakeClock, FakeDevice, FakeTimer


def a_visit(ns: list[float]) -> Visit:
    return Visit(np.array(ns), 0.0, 1.0, "k")


def test_quantiles_of_one_visit_are_hazens() -> None:
    ns = np.random.default_rng(0).lognormal(10.0, 0.3, 31)
    timing = timing_of([a_visit(ns.tolist())])
    expected = np.quantile(ns, [0.1, 0.5, 0.9], method="hazen")
    assert (timing.p10_ns, timing.median_ns, timing.p90_ns) == pytest.approx(tuple(expected))
    assert timing.noise == pytest.approx((expected[2] - expected[0]) / expected[1])
    assert timing.repeats == 31


def test_visits_count_alike_however_many_repeats_they_have() -> None:
    """By count alone one long visit would outvote two short ones."""
    timing = timing_of([a_visit([100.0] * 50), a_visit([200.0] * 5), a_visit([200.0] * 5)])
    assert (timing.p10_ns, timing.median_ns, timing.p90_ns) == (100.0, 200.0, 200.0)


def test_a_disturbed_repeat_and_those_after_it_are_set_aside() -> None:
    repeats = [Repeat(10.0)] * 4 + [Repeat(99.0, calm=False), Repeat(30.0), Repeat(20.0), Repeat(15.0), Repeat(10.0)]
    assert believed(repeats).tolist() == [10.0] * 5


def test_calm_repeats_do_where_few_are_settled_and_all_where_few_are_calm() -> None:
    stormy = [Repeat(50.0, calm=False), Repeat(12.0)] * 4
    assert believed(stormy).tolist() == [12.0] * 4
    assert len(believed([Repeat(50.0, calm=False)] * 5)) == 5


def test_a_visit_lasts_as_long_as_it_should() -> None:
    clock = FakeClock()
    device = FakeDevice(lambda _: 1e3, clock)
    device.repeat_s = 0.0125
    assert len(visit(FakeTimer(device, 1e3), clock, aim_s=0.099).ns) == 8
    device.repeat_s = 1.0
    assert len(visit(FakeTimer(device, 1e3), clock, aim_s=0.1).ns) == LEAST_REPEATS
    device.repeat_s = 1e-6
    assert len(visit(FakeTimer(device, 1e3), clock, aim_s=0.1).ns) == MOST_REPEATS


def test_pace_is_the_worse_of_the_sentinels_around_a_span() -> None:
    readings = [Reading(float(at), 100.0) for at in range(6)] + [Reading(6.0, 130.0), Reading(7.0, 100.0)]
    assert pace(readings, 1.2, 1.8) == 1.0
    assert pace(readings, 5.2, 5.8) == pytest.approx(1.3)
    assert pace(readings, 6.2, 6.8) == pytest.approx(1.3)
    assert pace(readings, 7.2, 7.8) == 1.0
    assert pace([], 0.0, 1.0) == 1.0


def test_drift_is_told_from_spread() -> None:
    rising = summary([Reading(float(i), 100.0 + i) for i in range(30)])
    assert rising.drift == pytest.approx(124.5 / 104.5 - 1.0)
    steady = summary([Reading(float(i), 100.0 + 5.0 * (i % 2)) for i in range(30)])
    assert steady.drift == pytest.approx(0.0)
    assert steady.spread == pytest.approx(5.0 / 102.5)
