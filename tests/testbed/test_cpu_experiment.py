"""The rule by which experiments/testbed/cpu.py serves again, and its percentiles, on made-up runs."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

from simkit.engine.settings import EngineSettings
from simkit.engine.simulate import simulate
from simkit.metrics.result import RunResult
from simkit.metrics.summary import summarize
from simkit.models.steptables import constant_tables
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

FOLDER = Path(__file__).resolve().parents[2] / "experiments/testbed"
TABLES = constant_tables(64, 8, token_ns=50_000, request_ns=9_000, step_ns=4_000_000)


@pytest.fixture(scope="module")
def shifts() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    import shifts

    yield shifts
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def repeats(shifts: ModuleType) -> ModuleType:
    import repeats

    return repeats


class Machine:
    """A minute passes with every shift, ten seconds with bursts; its sentinel is as slow as the list says, then 1."""

    def __init__(self, sentinels: list[float]) -> None:
        self.now_s, self.said, self.served, self.bursts = 0.0, iter(sentinels), [], 0

    def sentinel_s(self) -> float:
        return next(self.said, 1.0)

    def serve(self, shift: int) -> int:
        self.now_s += 60.0
        self.served.append(shift)
        return len(self.served)  # stands for what was measured

    def burst(self) -> list[Path]:
        self.now_s += 10.0
        self.bursts += 1
        return [Path(f"burst-{self.bursts}")]


class Outcome(NamedTuple):
    served: list[int]
    counted: list[int]  # of each shift, the how manieth that was served
    attempts: list


def run(shifts: ModuleType, sentinels: list[float], number: int = 4, until_s: float = 1e9) -> Outcome:
    machine = Machine(sentinels)
    actions = shifts.Actions(machine.serve, machine.burst, machine.sentinel_s)
    attempts = shifts.in_shifts(actions, number, until_s, lambda: machine.now_s)
    return Outcome(machine.served, [attempt.run for attempt in shifts.counted(attempts)], attempts)


def test_on_a_quiet_machine_every_shift_is_served_once(shifts: ModuleType) -> None:
    found = run(shifts, [1.0, 1.01, 0.99, 1.1, 0.9])
    assert found.served == [0, 1, 2, 3]
    assert found.counted == [1, 2, 3, 4]
    # neighbours share what lies between them
    assert [attempt.before.bursts[0].name for attempt in found.attempts] == [f"burst-{i}" for i in range(1, 5)]
    assert [attempt.after.bursts[0].name for attempt in found.attempts] == [f"burst-{i}" for i in range(2, 6)]


def test_a_disturbed_shift_is_served_again_between_bursts_of_its_own(shifts: ModuleType) -> None:
    # the sentinels before and after shift 2 (the third), and so of the end of shift 1 and the beginning of 3
    found = run(shifts, [1, 1, 1, 1, 1, 1.1, 1.5, 1.4, 1, 1])
    assert found.served == [0, 1, 2, 3, 2, 3]
    assert found.counted == [1, 2, 5, 6]
    again = found.attempts[4]
    assert again.before.bursts != found.attempts[2].before.bursts
    assert (again.before.bursts, again.after.bursts) == ((Path("burst-6"),), (Path("burst-7"),))


def test_the_most_disturbed_is_first_and_again_has_an_end(shifts: ModuleType) -> None:
    wild = [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 4.0] + [1.0, 3.0] * 20
    found = run(shifts, wild)
    assert len(found.served) == 4 + shifts.MOST_AGAIN
    assert found.served[4] in (2, 3)  # which share the 4.0


def test_an_attempt_that_is_worse_does_not_count(shifts: ModuleType) -> None:
    found = run(shifts, [1, 1, 1, 1.3, 1, 1, 1, 1, 1, 1] + [9.0] * 40)
    assert len(found.served) > 4
    assert found.counted == [1, 2, 3, 4]


def test_nothing_is_served_again_that_would_end_too_late(shifts: ModuleType) -> None:
    # 4 x 60 + 5 x 10 s, and 1.4 times a fourth of that is kept for each more, which takes 80
    noisy = [1, 1, 1, 1.5, 1.5, 1, 1, 1.5, 1, 1] + [2.0] * 20
    for until_s, served in ((391.0, 4), (392.0, 5), (471.0, 5), (472.0, 6), (1e9, 7)):
        assert len(run(shifts, noisy, until_s=until_s).served) == served


@pytest.fixture(scope="module")
def served() -> tuple[Workload, RunResult, list[RunResult]]:
    """Requests so far apart that nothing hangs on the others: whole, and in three parts."""
    rng = np.random.default_rng(3)
    workload = Workload(
        name="apart",
        arrival_us=np.arange(30) * 2_000_000,
        prompt_tokens=rng.integers(4, 60, 30).astype(np.int32),
        output_tokens=rng.integers(2, 40, 30).astype(np.int32),
    )
    limits = EngineSettings(async_scheduling=False).limits(200, 128, 64, 8)
    parts = [selected(workload, rows) for rows in np.array_split(np.arange(30), 3)]
    whole, *each = (simulate(part, limits, TABLES, 200) for part in (workload, *parts))
    return workload, whole, each


def test_percentiles_are_over_all_requests_of_a_repeat(
    repeats: ModuleType, served: tuple[Workload, RunResult, list[RunResult]]
) -> None:
    _, whole, parts = served
    expected = summarize(whole)["latency_of_this_run_s"]
    for (metric, quantile), found in repeats.latencies_s(parts).items():
        assert found == pytest.approx(expected[metric][quantile], rel=1e-9), (metric, quantile)


def test_rows_compare_medians(repeats: ModuleType, served: tuple[Workload, RunResult, list[RunResult]]) -> None:
    workload = served[0]
    limits = EngineSettings(async_scheduling=False).limits(200, 128, 64, 8)

    def at(factor: float) -> tuple[RunResult, ...]:
        slower = TABLES._replace(linear_ns=TABLES.linear_ns * factor, sample_ns=TABLES.sample_ns * factor)
        return (simulate(selected(workload, np.arange(9)), limits, slower, 200),)

    told = [repeats.Repeat(at(seen), (at(drawn), at(drawn * 1.5), at(drawn / 2))) for seen, drawn in
            ((1.0, 1.0), (2.0, 1.2), (1.1, 1.5))]  # fmt: skip
    row = repeats.rows(told)[0]
    assert row["name"] == "E2E p50"
    one = row["measured_s"][0]
    assert np.allclose(np.array(row["measured_s"]) / one, [1.0, 2.0, 1.1], rtol=1e-3)
    assert np.allclose(np.array(row["each_predicted_s"]) / one, [1.0, 1.2, 1.5], rtol=1e-3)
    assert row["error"] == pytest.approx(1.2 / 1.1 - 1, abs=1e-3)
    assert (row["aim"], row["met"]) == (0.10, True)
    assert row["spread"] == pytest.approx(1.0 / 1.1, abs=1e-3)
    assert len(repeats.row_lines(repeats.rows(told))) == 7
