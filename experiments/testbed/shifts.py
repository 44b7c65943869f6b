"""Serving in shifts: short pieces of a run, with calibration bursts and a sentinel step on either side of each.

A shared machine changes within seconds, and for minutes. So what is measured is cut into shifts of some ten seconds,
each between bursts that calibrate, so that both see the same machine; and a fixed step, the sentinel, is timed before
and after each of them. The rule, fixed beforehand:

    An attempt at a shift is a sentinel, bursts, a sentinel, the shift, a sentinel, bursts, a sentinel. It is disturbed
    where one of the four is more than `MOST_OFF` off the median of all sentinels so far. When every shift was served
    once, the most disturbed one is served again, and so on: `MOST_AGAIN` times at most, and while there is time. Of
    the attempts at a shift the one counts whose sentinels are least off the median, and its bursts with it.

Sentinels alone decide; how long a shift took, and what was predicted of it, is not looked at.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simkit.testbed.measured import MeasuredRun

MOST_OFF = 0.15
MOST_AGAIN = 3
ALONE = 1.4  # times as long as in a row takes a shift that shares its bursts with no other


class Actions(NamedTuple):
    """What a run is made of, each done once when it is called."""

    serve: Callable[[int], MeasuredRun]  # the shift of this number
    bursts: Callable[[], list[Path]]
    sentinel_s: Callable[[], float]


class Between(NamedTuple):
    """What lies between two shifts."""

    first_s: float  # sentinels
    bursts: tuple[Path, ...]
    second_s: float


class Attempt(NamedTuple):
    """A shift served once, with what lay before and after it."""

    shift: int
    run: MeasuredRun
    before: Between
    after: Between

    @property
    def sentinels_s(self) -> tuple[float, ...]:
        """All four, in the order of time."""
        return self.before.first_s, self.before.second_s, self.after.first_s, self.after.second_s


def in_shifts(
    actions: Actions, shifts: int, until_s: float, clock: Callable[[], float] = time.perf_counter
) -> list[Attempt]:
    """Every attempt, in order: all shifts, then disturbed ones again that are likely to end by `until_s` of `clock`.

    Two shifts that follow one another share what lies between them.
    """
    attempts: list[Attempt] = []
    began_s = clock()
    between = _between(actions)
    for shift in range(shifts):
        attempts.append(_attempt(actions, shift, between))
        between = attempts[-1].after
    each_s = ALONE * (clock() - began_s) / shifts
    for _ in range(MOST_AGAIN):
        median = median_s(attempts)
        worst = max(counted(attempts), key=lambda attempt: off(attempt, median))
        if off(worst, median) <= MOST_OFF or clock() + each_s > until_s:
            break
        attempts.append(_attempt(actions, worst.shift, _between(actions)))
    return attempts


def _between(actions: Actions) -> Between:
    return Between(actions.sentinel_s(), tuple(actions.bursts()), actions.sentinel_s())


def _attempt(actions: Actions, shift: int, before: Between) -> Attempt:
    return Attempt(shift, actions.serve(shift), before, _between(actions))


def median_s(attempts: Sequence[Attempt]) -> float:
    """Of the sentinels of all attempts; those that two share count once."""
    once = {id(each): each for attempt in attempts for each in (attempt.before, attempt.after)}
    return float(np.median([second for each in once.values() for second in (each.first_s, each.second_s)]))


def off(attempt: Attempt, median: float) -> float:
    """By how much the sentinel that is farthest from the median is off it, as a share of it."""
    return max(abs(each / median - 1.0) for each in attempt.sentinels_s)


def counted(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Of each shift the attempt whose sentinels are least off, in the order of shifts."""
    median = median_s(attempts)
    best: dict[int, Attempt] = {}
    for each in sorted(attempts, key=lambda attempt: off(attempt, median)):
        best.setdefault(each.shift, each)
    return [best[shift] for shift in sorted(best)]
