"""The measurement: visit planned points in random order within a budget, sentinels between, noisy ones again.

    measurement = measure(bench, plan_points(scope), budget_s=480.0)

What is there when the budget or the user's patience ends is kept: a coarse grid over everything comes first.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from simkit.calibrate.points import PlannedPoint, Point
from simkit.calibrate.sentinel import Reading, pace
from simkit.calibrate.timing import Clock, Timer, Timing, Visit, timing_of, visit

NOISY = 0.05  # (p90 - p10) / median beyond which a point is visited again
MOST_VISITS = 3  # beside the first
FIRST_PASS_SHARE = 0.75  # of the budget: the rest is for visiting again
SENTINEL_EVERY = 25  # points
SENTINEL_EVERY_S = 5.0
CHECKPOINT_EVERY_S = 30.0
SHORTEST_AIM_S, LONGEST_AIM_S = 0.02, 0.25  # of one visit


class UnmeasurableError(Exception):
    """A point that this device cannot run: too large for its memory, or a kernel it does not have."""


class Bench(Protocol):
    """A device that operators are timed on."""

    @property
    def pace_limit(self) -> float:
        """How slow the sentinel may be, over its good moments, before a visit is set aside: 1.02."""

    def timer(self, point: Point) -> Timer:
        """Set an operator up; raises UnmeasurableError."""

    def sentinel(self) -> Timer:
        """The operator that is timed between points."""


class Progress(NamedTuple):
    """How far a measurement is."""

    stage: str
    done: int
    total: int


@dataclass
class Measurement:
    """What was measured so far."""

    timings: dict[Point, Timing] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    skipped: dict[Point, str] = field(default_factory=dict)  # and why
    planned: int = 0
    kept: int = 0  # of the timings, from an earlier measurement
    visited_again: int = 0
    interrupted: bool = False
    spent_s: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every planned point was visited or found unmeasurable."""
        # a point that ran once and failed when it was visited again is in both
        return len(self.timings.keys() | self.skipped.keys()) >= self.planned


def measure(
    bench: Bench,
    plan: Sequence[PlannedPoint],
    budget_s: float,
    *,
    seed: int = 0,
    earlier: Mapping[Point, Timing] | None = None,
    clock: Clock = time.perf_counter,
    on_progress: Callable[[Progress], None] | None = None,
    on_checkpoint: Callable[[Measurement], None] | None = None,
) -> Measurement:
    """Time as many of the planned points as `budget_s` seconds allow, level by level.

    Args:
        bench: what they are timed on.
        plan: points, each once.
        budget_s: of wall time, from the call on.
        seed: of the order within a level.
        earlier: what an earlier measurement of the same plan had; these points are not visited but kept.
        clock: time in s.
        on_progress: told now and then.
        on_checkpoint: given what there is, about every half minute.

    A KeyboardInterrupt ends the measurement; the result holds what was measured and says `interrupted`. Whatever else a
    device raises beside a point that it cannot run is passed on, after `on_checkpoint` was given what there is.
    """
    run = _Run(bench, budget_s, seed, clock, on_progress, on_checkpoint)
    run.found.planned = len(plan)
    run.found.timings.update(
        {planned.point: (earlier or {})[planned.point] for planned in plan if planned.point in (earlier or {})}
    )
    run.found.kept = len(run.found.timings)
    try:
        run.first_pass([planned for planned in plan if planned.point not in run.found.timings])
        run.again()
    except KeyboardInterrupt:
        run.found.interrupted = True
    except Exception:
        # the device is gone: what was measured until then is wanted all the same
        run.keep()
        raise
    run.settle()
    return run.found


class _Run:
    """One call of `measure`."""

    def __init__(
        self,
        bench: Bench,
        budget_s: float,
        seed: int,
        clock: Clock,
        on_progress: Callable[[Progress], None] | None,
        on_checkpoint: Callable[[Measurement], None] | None,
    ) -> None:
        self.found = Measurement()
        self.visits: dict[Point, list[Visit]] = {}
        self._bench, self._budget_s, self._clock = bench, budget_s, clock
        self._rng = np.random.default_rng(seed)
        self._on_progress, self._on_checkpoint = on_progress, on_checkpoint
        self._start_s = self._checkpoint_s = clock()
        self._sentinel = bench.sentinel()
        self._aim_s = SHORTEST_AIM_S
        self._since = SENTINEL_EVERY  # points since the last sentinel

    def first_pass(self, plan: Sequence[PlannedPoint]) -> None:
        """Every point once, coarse ones first, for a share of the budget."""
        order = self._shuffled(plan)
        self._aim_s = float(np.clip(0.5 * self._budget_s / max(1, len(order)), SHORTEST_AIM_S, LONGEST_AIM_S))
        for number, point in enumerate(order):
            if self._spent_s() > FIRST_PASS_SHARE * self._budget_s:
                break
            self._visit(point, Progress("points", number, len(order)))
        self._read_sentinel()

    def again(self) -> None:
        """Noisy points, and points visited in bad moments, up to MOST_VISITS times more each, the worst first."""
        for turn in range(MOST_VISITS):
            noisy = self._noisy()
            for number, point in enumerate(noisy):
                if self._spent_s() > self._budget_s:
                    return
                self.found.visited_again += 1
                self._visit(point, Progress(f"noisy points, turn {turn + 1}", number, len(noisy)))
            if not noisy:
                return
            self._read_sentinel()

    def settle(self) -> None:
        """Turn visits into timings."""
        for point, visits in self.visits.items():
            self.found.timings[point] = timing_of(self._best(visits))
        self.found.spent_s = self._spent_s()

    def keep(self) -> None:
        """Give what there is to who keeps it."""
        self._checkpoint_s = self._clock()
        self.settle()
        if self._on_checkpoint is not None:
            self._on_checkpoint(self.found)

    def _shuffled(self, plan: Sequence[PlannedPoint]) -> list[Point]:
        levels = sorted({planned.level for planned in plan})
        order: list[Point] = []
        for level in levels:
            points = [planned.point for planned in plan if planned.level == level]
            order += [points[i] for i in self._rng.permutation(len(points))]
        return order

    def _visit(self, point: Point, progress: Progress) -> None:
        if self._since >= SENTINEL_EVERY or self._clock() - self.found.readings[-1].at_s > SENTINEL_EVERY_S:
            self._read_sentinel()
        self._since += 1
        if self._on_progress is not None:
            self._on_progress(progress)
        try:
            seen = visit(self._bench.timer(point), self._clock, self._aim_s)
            self.visits.setdefault(point, []).append(seen)
        except UnmeasurableError as error:
            self.found.skipped[point] = str(error)

    def _read_sentinel(self) -> None:
        seen = visit(self._sentinel, self._clock, SHORTEST_AIM_S)
        self.found.readings.append(Reading(self._clock(), float(np.median(seen.ns))))
        self._since = 0
        if self._on_checkpoint is not None and self._clock() - self._checkpoint_s > CHECKPOINT_EVERY_S:
            self.keep()

    def _noisy(self) -> list[Point]:
        """Points to visit again, the noisiest first; equally noisy ones in random order."""
        worst: list[tuple[float, float, Point]] = []
        for point, visits in self.visits.items():
            noise = timing_of(self._best(visits)).noise
            hurried = all(self._pace(visit) > self._bench.pace_limit for visit in visits)
            if (noise > NOISY or hurried) and len(visits) <= MOST_VISITS:
                worst.append((-noise, float(self._rng.random()), point))
        return [point for _, _, point in sorted(worst, key=lambda entry: entry[:2])]

    def _best(self, visits: list[Visit]) -> list[Visit]:
        """The visits of good moments, else the one of the best moment."""
        good = [visit for visit in visits if self._pace(visit) <= self._bench.pace_limit]
        return good or [min(visits, key=self._pace)]

    def _pace(self, visit: Visit) -> float:
        return pace(self.found.readings, visit.start_s, visit.end_s)

    def _spent_s(self) -> float:
        return self._clock() - self._start_s
