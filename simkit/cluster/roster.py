"""Who is in the fleet: replicas that start, serve, drain, break down and come back, each life of one on record.

Engines that share experts are replicas that do all of this together: the lives of a `group` are in one state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby

import simpy

from simkit.cluster.alarm import Alarm
from simkit.cluster.job import Job
from simkit.cluster.lockstep import Lockstep
from simkit.cluster.station import Station
from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError


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

    @property
    def engines(self) -> int:
        """How many share experts with it, itself included."""
        return self.spec.deployment.layout.data


def groups_of(members: Sequence[Member]) -> list[tuple[Member, ...]]:
    """Members, in order, by who shares experts; one alone is a group too. InputError where some of a group lack."""
    groups = []
    for pool, mine in groupby(members, key=lambda member: member.pool):
        engines = list(mine)
        size = engines[0].engines
        if len(engines) % size:
            raise InputError(
                f"cluster pool {pool}: {len(engines)} engines, and layout.data={size} of them share their experts; "
                f"set data_parallel: {size}"
            )
        groups += [tuple(engines[start : start + size]) for start in range(0, len(engines), size)]
    return groups


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
    group: "tuple[Life, ...]" = field(default=(), repr=False)  # who shares experts with it, and itself

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

    def start(self, members: Sequence[Member], delay_ns: int, number: int | None = None) -> Life:
        """A group that is ready after `delay_ns`, its first with a `number` or a new one; returns the first's life."""
        group = self._new_group(members, number)
        if delay_ns == 0:
            self._ready(group)
        else:
            Alarm(self._clock, int(self._clock.now) + delay_ns, lambda: self._ready(group))
        return group[0]

    def hold_warm(self, members: Sequence[Member], delay_ns: int, number: int | None = None) -> Life:
        """A group that is loaded after `delay_ns` and held back until `activate`; `number` and result as of `start`."""
        group = self._new_group(members, number)
        for life in group:
            life.warming = True
        Alarm(self._clock, int(self._clock.now) + delay_ns, lambda: self._loaded(group))
        return group[0]

    def activate(self, life: Life, delay_ns: int) -> None:
        """Let a warm group serve, `delay_ns` from now."""
        for each in life.group:
            each.state = State.STARTING
        Alarm(self._clock, int(self._clock.now) + delay_ns, lambda: self._ready(life.group))

    def drain(self, life: Life, then: Callable[[], None] | None = None) -> None:
        """Send a group nothing more and end it when it has answered all; `then` is called at that moment."""
        if then is not None:
            life.group[-1].replaced.append(then)
        if life.state in (State.STARTING, State.WARM):
            self._end_all(life.group)
            return
        if life.state is State.SERVING:
            self._withdraw(life.group, State.DRAINING)
        self.check_drained(life)

    def check_drained(self, life: Life) -> None:
        """End a draining group that has nothing left."""
        if life.state is State.DRAINING and all(each.station is not None and each.station.idle for each in life.group):
            self._end_all(life.group)

    def crash(self, life: Life) -> list[tuple[Life, list[Job]]]:
        """A group is gone at once; returns each of it with the jobs it had."""
        if life.state is State.GONE:
            return []
        lost = [(each, each.station.stop() if each.station is not None else []) for each in life.group]
        if life.state is State.SERVING:
            self._withdraw(life.group, State.GONE)
        self._end_all(life.group)
        return lost

    def cut_off(self, life: Life) -> list[tuple[Life, list[Job]]]:
        """Nobody reaches a serving group any more, though it works on; returns each with jobs whose clients lost it.

        Of a group that does not serve nobody is lost here.
        """
        if life.state is not State.SERVING:
            return [(each, []) for each in life.group]
        self._withdraw(life.group, State.CUT_OFF)
        return [(each, _let_go(each.station)) for each in life.group if each.station is not None]

    def rejoin(self, life: Life) -> None:
        """A group that was cut off can be reached again."""
        if life.state is State.CUT_OFF:
            self._insert(life.group)

    def _new_group(self, members: Sequence[Member], number: int | None) -> tuple[Life, ...]:
        first, now = self._next_number if number is None else number, int(self._clock.now)
        group = tuple(Life(first + i, member, now, len(self.lives) + i) for i, member in enumerate(members))
        self.lives += group
        for life in group:
            life.group = group
        if number is None:
            self._next_number += len(group)
            for life in group:
                for told in self.on_new:
                    told(life.number)
        return group

    def _loaded(self, group: Sequence[Life]) -> None:
        for life in group:
            life.warming = False
            if life.state is State.STARTING:
                life.state = State.WARM

    def _ready(self, group: Sequence[Life]) -> None:
        if group[0].state is not State.STARTING:
            return
        stations = []
        for life in group:
            life.ready_ns = int(self._clock.now)
            life.station = self.new_station(life)
            stations.append(life.station)
        if len(stations) > 1:
            Lockstep(stations)
        self._insert(group)

    def _insert(self, group: Sequence[Life]) -> None:
        for life in group:
            life.state = State.SERVING
        self.serving = sorted([*self.serving, *group], key=lambda other: other.number)
        for action in self.on_change:
            action()

    def _withdraw(self, group: Sequence[Life], state: State) -> None:
        for life in group:
            life.state = state
        self.serving = [other for other in self.serving if other not in group]

    def _end_all(self, group: Sequence[Life]) -> None:
        for life in group:
            life.state = State.GONE
            life.ended_ns = int(self._clock.now)
        for life in group:
            for told in self.on_gone:
                told(life)
        for life in group:
            waiting, life.replaced = life.replaced, []
            for action in waiting:
                action()


def _let_go(station: Station) -> list[Job]:
    """The open jobs of a station, which it goes on with though nobody can be told any more."""
    cut = [job for job in station.jobs if job.open and job.row >= 0]
    for job in cut:
        station.let_go(job)
        job.open = False
    return cut
