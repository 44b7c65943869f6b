"""A history from its first arrival to its last token, with every rule checked after every step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from simkit.engine.checks import Checker, check_end
from simkit.engine.histories import History
from simkit.engine.ring import rows_of
from simkit.engine.state import (
    FLUSH,
    IN_FLIGHT,
    NEXT_ARRIVAL,
    NOW,
    OLDEST,
    ROWS,
    RUNNING_COUNT,
    STEPS,
    UNFINISHED,
    Replica,
)
from simkit.engine.violation import ENDS, PLACES_KEPT, RUNS, Violation
from simkit.models.steptables import StepTables

MOST_TURNS = 20_000  # no history of simkit.engine.histories needs a tenth of it
LONGEST_HISTORY_S = 20.0  # of interpreted code, which takes 0.1 s; more is a loop without an end

Iterate = Callable[[Replica, StepTables], None]
Schedule = Callable[[Replica, int], None]


class Watch:
    """Stands behind an interpreted discipline and has the checker of the history under way look at each batch."""

    def __init__(self) -> None:
        self.checker: Checker | None = None

    def around(self, schedule: Schedule) -> Schedule:
        """`schedule`, then a look at what it did."""

        def watched(r: Replica, row: int) -> None:
            schedule(r, row)
            if self.checker is not None:
                self.checker.after_schedule(r, row)

        return watched


def checked_run(
    history: History,
    iterate: Iterate,
    most_overtaken: int | None = None,
    watch: Watch | None = None,
    explain: Callable[[Exception], str] = str,
) -> Replica:
    """Run a history to its end under a checker; raises Violation at the first rule that breaks.

    `explain` says where an exception of the discipline came from.
    """
    r = history.replica()
    checker = Checker(r, most_overtaken)
    if watch is not None:
        watch.checker = checker
    with _time_limit(LONGEST_HISTORY_S):
        for _ in range(MOST_TURNS):
            if r.at[UNFINISHED] == 0 and r.at[IN_FLIGHT] == 0 and r.at[FLUSH] == 0:
                if r.at[NEXT_ARRIVAL] == r.at[ROWS]:
                    check_end(r)
                    return r
                r.at[NOW] = max(r.at[NOW], r.requests["arrival_ns"][r.at[NEXT_ARRIVAL]])
            checker.before_step(r)
            try:
                iterate(r, history.tables)
            except Violation:
                raise
            except Exception as error:
                raise _rule_behind(r, explain(error)) from error
            checker.after_step(r)
    step = int(r.at[STEPS])
    raise Violation(ENDS, step, None, f"{r.at[UNFINISHED]} requests unfinished after {MOST_TURNS} turns")


def _rule_behind(r: Replica, said: str) -> Violation:
    """An exception as the rule that was about to break: arrays have as many places as may be taken."""
    step = int(r.at[STEPS]) + 1
    length = int(r.batches["length"][(r.at[OLDEST] + r.at[IN_FLIGHT]) % rows_of(r.limits)])
    if said.count("IndexError") and max(length, int(r.at[RUNNING_COUNT])) >= r.limits.max_running:
        return Violation(PLACES_KEPT, step, None, f"all {r.limits.max_running} places were taken: {said}")
    return Violation(RUNS, step, None, said)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError, out of whatever runs, after so much CPU time; no limit off the main thread or on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {seconds:.0f} s; is there a loop that does not end?")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
