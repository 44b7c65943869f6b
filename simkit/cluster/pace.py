"""When replicas run and wake: one by itself, or the engines of one that take their steps together.

Neither is a process that takes steps. Between two looks they sleep until the earliest time at which one of their
requests can end (simkit.cluster.loops.lookahead); what arrives meanwhile is put in their arrays and waits there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import simpy

from simkit.cluster.alarm import Alarm
from simkit.cluster.job import Job
from simkit.cluster.loops.until_end import ENDED, MORE
from simkit.engine.simulate import ITERATIONS_A_CALL
from simkit.engine.state import NEVER


class Ran(NamedTuple):
    """Why a run stopped (simkit.cluster.loops.until_end), when those whom it answered are, and until when nobody is."""

    state: int
    late_ns: int
    next_ns: int


class Engine(Protocol):
    """What is run, of which there may be several."""

    outstanding: int
    late: list[Job]  # answered by a step that has been run but is not over yet

    def turns(self) -> int:
        """How many turns to run before `ran` is told."""

    def ran(self) -> None:
        """Turns were run; `late` are whom the last of them answers."""

    def rests(self) -> None:
        """All turns that begin before now were run, and nobody is late."""

    def count_out_late(self) -> list[Job]:
        """The step is over: forget of `late`, and return who of them is still waited for."""

    def on_end(self, job: Job) -> None:
        """Tell of a job whose last token is out."""


class Pace:
    """Runs engines up to the clock's time, no further than the first turn that answers somebody, and tells of that."""

    def __init__(self, clock: simpy.Environment, engines: Sequence[Engine], run: Callable[[int, int], Ran]) -> None:
        """`run(until_ns, turns)` runs all the engines, and notes in each whom it answers."""
        self._clock = clock
        self._engines = engines
        self._run = run
        self._late = False  # somebody is
        self._late_ns = 0
        self._alarm: Alarm | None = None
        self._stopped = False
        self._there_ns = -1  # up to this time all is run, and nothing has changed since

    def look(self) -> None:
        """Catch up: run every turn that begins before now. Whom that answers is told by an alarm, not from here."""
        if self._stopped:
            return
        if not self._late:
            self._run_on()
        if self._late:
            self._wake_at(self._late_ns)

    def changed(self) -> None:
        """Steps take another time from here on."""
        self._there_ns = -1

    def stop(self) -> None:
        """Nothing runs any more."""
        if self._alarm is not None:
            self._alarm.put_off()
            self._alarm = None
        self._stopped = True

    def finish(self) -> None:
        """Unless it was stopped, end what was begun; nobody is told."""
        state = MORE
        while not self._stopped and state in (MORE, ENDED):
            state = self._run(NEVER, ITERATIONS_A_CALL).state

    def wake_by(self, at_ns: int) -> None:
        """Look again at this time at the latest."""
        if self._alarm is None or self._alarm.at_ns > at_ns:
            self._wake_at(at_ns)

    def _woken(self) -> None:
        """Tell of those who are answered by now, and sleep until the next may be."""
        self._alarm = None
        now = int(self._clock.now)
        while True:
            if not self._late:
                self._run_on()
            if not self._late:
                return
            if self._late_ns > now:
                self._wake_at(self._late_ns)
                return
            self._tell()

    def _run_on(self) -> None:
        """Run turns that begin before now, up to the first that answers somebody: `_late` then."""
        now = int(self._clock.now)
        if now == self._there_ns:
            return
        state, next_ns = ENDED, NEVER
        while state in (MORE, ENDED) and not self._late:
            state, late_ns, next_ns = self._run(now, min(engine.turns() for engine in self._engines))
            if state == ENDED:
                self._late_ns = late_ns
                self._late = any(engine.late for engine in self._engines)
            for engine in self._engines:
                engine.ran()
        if self._late:
            return
        self._there_ns = now
        if next_ns != NEVER and any(engine.outstanding for engine in self._engines):
            self._wake_at(max(next_ns, now + 1))
        for engine in self._engines:
            engine.rests()

    def _tell(self) -> None:
        self._late = False
        # all are counted out before anybody hears of one
        for engine, ended in [(engine, engine.count_out_late()) for engine in self._engines if engine.late]:
            for job in ended:
                engine.on_end(job)

    def _wake_at(self, at_ns: int) -> None:
        if self._alarm is not None:
            if self._alarm.at_ns == at_ns:
                return
            self._alarm.put_off()
        self._alarm = Alarm(self._clock, at_ns, self._woken, before_others=True)
