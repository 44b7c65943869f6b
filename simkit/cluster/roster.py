"""Who is in the fleet: replicas that start, serve, drain, break down and come back, each life of one on record."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import simpy

from simkit.cluster.alarm import Alarm
from simkit.cluster.job import Job
from simkit.cluster.station import Station
from simkit.engine.deployment import ReplicaSpec


class State(Enum):
    """Where in its life a replica is."""

    STARTING = "starting"  # paid for, and not ready
    WARM = "warm"  # loaded and paid for, and held back
    SERVING = "serving"
    DRAINING = "draining"  # finishes what it has and gets nothing more
    CUT_OFF = "cut off"  # works, but nobody can reach it
    GONE = "gone"


@dataclass(frozen=True)
class Member:
    """A replica that a fleet may have: what it is, whom it belongs to, where it stands."""

    spec: ReplicaSpec
    pool: str = "default"
    node: int = 0  # the machine; all replicas on one go down together


@dataclass(eq=False)
class Life:
    """One replica from being asked for to its end; a replica that restarts begins another life. Times in ns."""

    number: int  # of the replica, kept over restarts
    member: Member
    asked_ns: int  # from here on it is paid for
    index: int
    station: Station | None = None  # None before it is ready
    ready_ns: int | None = None
    ended_ns: int | None = None
    state: State = State.STARTING
    warming: bool = False  # STARTING, to become WARM
    unlinked: int = 0  # while above 0 no KV comes to it from others, or leaves it
    replaced: list[Callable[[], None]] = field(default_factory=list)  # called when it has drained and is gone

    @property
    def gpus(self) -> int:
        """GPUs it occupies."""
        return self.member.spec.deployment.layout.gpus


class Roster:
    """All lives of a fleet's replicas; `serving` are those that can be sent requests, by number."""

    new_station: Callable[[Life], Station]  # makes the replica of a life that begins, with an empty cache

    def __init__(self, clock: simpy.Environment) -> None:
        self.lives: list[Life] = []
        self.serving: list[Life] = []
        self.on_change: list[Callable[[], None]] = []  # called when a replica becomes ready
        self.on_gone: list[Callable[[Life], None]] = []  # called when one is gone
        self.on_new: list[Callable[[int], None]] = []  # called with the number of one that was never there before
        self._clock = clock
        self._next_number = 0

    def start(self, member: Member, delay_ns: int, number: int | None = None) -> Life:
        """A replica that is ready after `delay_ns`; without a `number` a new one."""
        life = self._new_life(member, number)
        if delay_ns == 0:
            self._ready(life)
        else:
            Alarm(self._clock, int(self._clock.now) + delay_ns, lambda: self._ready(life))
        return life

    def hold_warm(self, member: Member, delay_ns: int, number: int | None = None) -> Life:
        """A replica that is loaded after `delay_ns` and held back until `activate`; without a `number` a new one."""
        life = self._new_life(member, number)
        life.warming = True
        Alarm(self._clock, int(self._clock.now) + delay_ns, lambda: self._loaded(life))
        return life

    def activate(self, life: Life, delay_ns: int) -> None:
        """Let a warm replica serve, `delay_ns` from now."""
        life.state = State.STARTING
        Alarm(self._clock, int(self._clock.now) + delay_ns, lambda: self._ready(life))

    def drain(self, life: Life, then: Callable[[], None] | None = None) -> None:
        """Send a replica nothing more and end it when it has answered all; `then` is called at that moment."""
        if then is not None:
            life.replaced.append(then)
        if life.state in (State.STARTING, State.WARM):
            self._end(life)
            return
        if life.state is State.SERVING:
            self._withdraw(life, State.DRAINING)
        self.check_drained(life)

    def check_drained(self, life: Life) -> None:
        """End a draining replica that has nothing left."""
        if life.state is State.DRAINING and life.station is not None and life.station.idle:
            self._end(life)

    def crash(self, life: Life) -> list[Job]:
        """A replica is gone at once; returns the jobs it had."""
        if life.state is State.GONE:
            return []
        lost = life.station.stop() if life.station is not None else []
        if life.state is State.SERVING:
            self._withdraw(life, State.GONE)
        self._end(life)
        return lost

    def cut_off(self, life: Life) -> list[Job]:
        """Nobody reaches a serving replica any more, though it works on; returns the jobs whose clients lost it."""
        if life.state is not State.SERVING or life.station is None:
            return []
        self._withdraw(life, State.CUT_OFF)
        station = life.station
        cut = [job for job in station.jobs if job.open and job.row >= 0]
        for job in cut:
            station.let_go(job)
            job.open = False
        return cut

    def rejoin(self, life: Life) -> None:
        """A replica that was cut off can be reached again."""
        if life.state is State.CUT_OFF:
            life.state = State.SERVING
            self._insert(life)

    def _new_life(self, member: Member, number: int | None) -> Life:
        life = Life(self._next_number if number is None else number, member, int(self._clock.now), len(self.lives))
        self.lives.append(life)
        if number is None:
            self._next_number += 1
            for told in self.on_new:
                told(life.number)
        return life

    def _loaded(self, life: Life) -> None:
        life.warming = False
        if life.state is State.STARTING:
            life.state = State.WARM

    def _ready(self, life: Life) -> None:
        if life.state is not State.STARTING:
            return
        life.ready_ns = int(self._clock.now)
        life.station = self.new_station(life)
        life.state = State.SERVING
        self._insert(life)

    def _insert(self, life: Life) -> None:
        self.serving = sorted([*self.serving, life], key=lambda other: other.number)
        for action in self.on_change:
            action()

    def _withdraw(self, life: Life, state: State) -> None:
        life.state = state
        self.serving = [other for other in self.serving if other is not life]

    def _end(self, life: Life) -> None:
        life.state = State.GONE
        life.ended_ns = int(self._clock.now)
        for told in self.on_gone:
            told(life)
        waiting, life.replaced = life.replaced, []
        for action in waiting:
            action()
