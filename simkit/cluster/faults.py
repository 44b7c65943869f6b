"""What goes wrong in a fleet: by a schedule, or drawn from a seed."""

from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import simpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simkit.cluster.alarm import Alarm
from simkit.cluster.job import Job
from simkit.cluster.live import House
from simkit.cluster.roster import Life, State
from simkit.cluster.startup import Startup
from simkit.errors import InputError
from simkit.invalid import first_error
from simkit.yaml_file import read_yaml

MAX_FILE_BYTES = 1 << 24
SLOW_FACTOR = 2.0  # of step times, where none is given

Kind = Literal["crash", "slow", "cut_off", "link_down", "node_down", "update"]


class Fault(BaseModel):
    """One event. It hits a replica by number, all of a pool, or all on a node; without any of them the whole fleet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_s: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    kind: Kind = Field(description="update: drain one replica after the other and start it again")
    replica: int | None = Field(default=None, ge=0)
    pool: str | None = None
    node: int | None = Field(default=None, ge=0)
    for_s: float | None = Field(
        default=None, ge=0, le=1e9, description="how long; default for a crash or an update: engine start and weights"
    )
    factor: float | None = Field(
        default=None, gt=0, le=1e4, description=f"of step times, for slow; default {SLOW_FACTOR:g}"
    )

    @model_validator(mode="after")
    def _complete(self) -> "Fault":
        if self.kind in ("slow", "cut_off", "link_down") and self.for_s is None:
            raise ValueError(f"{self.kind} needs for_s, how long it lasts")
        if self.kind == "node_down" and self.node is None:
            raise ValueError("node_down needs the node's number")
        if self.kind != "slow" and self.factor is not None:
            raise ValueError(f"factor is of slow, and this is {self.kind}; leave it out")
        return self

    def hits(self, life: Life) -> bool:
        """Whether it concerns a replica."""
        return (
            self.replica in (None, life.number)
            and self.pool in (None, life.member.pool)
            and self.node in (None, life.member.node)
        )


class RandomFaults(BaseModel):
    """Each replica by itself: times between faults are exponential, and so are their durations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean_between_s: float = Field(gt=0, le=1e9, allow_inf_nan=False)
    mean_for_s: float = Field(default=60.0, gt=0, le=1e9, allow_inf_nan=False)
    crash: float = Field(default=1.0, ge=0, description="weight of each kind")
    slow: float = Field(default=0.0, ge=0)
    cut_off: float = Field(default=0.0, ge=0)
    link_down: float = Field(default=0.0, ge=0)
    slow_factor: float | None = Field(default=None, gt=0, le=1e4, description=f"default {SLOW_FACTOR:g}")

    @model_validator(mode="after")
    def _some_kind(self) -> "RandomFaults":
        if self.crash + self.slow + self.cut_off + self.link_down <= 0:
            raise ValueError("the weights of crash, slow, cut_off and link_down are all 0; give one")
        if self.slow == 0 and self.slow_factor is not None:
            raise ValueError("slow_factor is of slow, whose weight is 0; give slow a weight, or leave slow_factor out")
        return self


class Faults(BaseModel):
    """A schedule, a file that holds one, and random ones, in any combination."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schedule: tuple[Fault, ...] = ()
    file: Path | None = Field(default=None, description="a YAML list of the same")
    random: RandomFaults | None = None

    @property
    def breaks_links(self) -> bool:
        """Whether KV links go down, by what is said here; a file is not read."""
        drawn = self.random is not None and self.random.link_down > 0
        return drawn or any(fault.kind == "link_down" for fault in self.schedule)

    def all_scheduled(self) -> tuple[Fault, ...]:
        """Those of the schedule and of the file; InputError for a file that holds none."""
        return self.schedule + (read_faults(self.file) if self.file is not None else ())


def read_faults(path: Path) -> tuple[Fault, ...]:
    """The faults of a YAML file; InputError, naming the entry, if it is none."""
    found = read_yaml(path, "write a list of faults: - {at_s: 10, kind: crash}", MAX_FILE_BYTES)
    if not isinstance(found, list):
        raise InputError(f"{path}: holds no list; write - {{at_s: 10, kind: crash, replica: 0}}, one entry a fault")
    faults = []
    for i, entry in enumerate(found):
        try:
            faults.append(Fault.model_validate(entry))
        except ValidationError as error:
            raise InputError(first_error(error, f"{path}: entry {i + 1}", Fault.model_fields)) from None
    return tuple(faults)


def fault_process(faults: Faults, startup: Startup, rng: np.random.Generator) -> Callable[[House], None]:
    """The process that lets them happen. `rng` draws the random ones, a stream for each replica."""
    scheduled = faults.all_scheduled()

    def begin(house: House) -> None:
        breakage = Breakage(house, startup)
        for fault in scheduled:
            Alarm(house.clock, round(fault.at_s * 1e9), partial(breakage.happen, fault))
        if faults.random is not None:
            watch = partial(_watch, house, breakage, faults.random, rng)
            for number in sorted({life.number for life in house.roster.lives}):
                watch(number)
            house.roster.on_new.append(watch)

    return begin


def _watch(house: House, breakage: "Breakage", spec: RandomFaults, rng: np.random.Generator, number: int) -> None:
    """Let a replica have random faults, out of a stream of its own."""
    stream = np.random.default_rng(int(rng.integers(1 << 62)))
    house.clock.process(_random_faults(house, breakage, spec, number, stream))


def _random_faults(
    house: House, breakage: "Breakage", spec: RandomFaults, number: int, rng: np.random.Generator
) -> Generator[simpy.Event, None, None]:
    """Faults of one replica, as long as the fleet has something to do."""
    weights = np.array([spec.crash, spec.slow, spec.cut_off, spec.link_down])
    kinds: tuple[Kind, ...] = ("crash", "slow", "cut_off", "link_down")
    while not house.door.done:
        yield house.clock.timeout(round(float(rng.exponential(spec.mean_between_s)) * 1e9))
        for_s = float(rng.exponential(spec.mean_for_s))
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        if not house.door.done:
            factor = spec.slow_factor if kind == "slow" else None
            breakage.happen(Fault(at_s=0.0, kind=kind, replica=number, for_s=min(for_s, 1e9), factor=factor))


class Breakage:
    """Does to replicas what faults do, and undoes it."""

    def __init__(self, house: House, startup: Startup) -> None:
        self._house = house
        self._startup = startup

    def happen(self, fault: Fault) -> None:
        """A fault at this moment, on all replicas that it hits; when all requests are over, nothing counts any more."""
        if self._house.door.done:
            return
        hit = [life for life in self._house.roster.lives if life.state is not State.GONE and fault.hits(life)]
        # who shares experts goes down, is cut off and restarts together: once for all of them
        groups = list(dict.fromkeys(life.group[0] for life in hit))
        before = [State.WARM if life.warming else life.state for life in groups]
        if fault.kind == "update":
            self._house.clock.process(self._update(groups, fault))
            return
        # all are hit at once: whoever is lost must not be sent on to one that goes down at the same moment
        lost: list[Job] = []
        if fault.kind in ("crash", "node_down"):
            for life in groups:
                lost += self._dropped(self._house.roster.crash(life))
            for life, state in zip(groups, before, strict=True):
                self._bring_back(life, state, fault)
        elif fault.kind == "cut_off":
            for life in groups:
                lost += self._cut_off(life, fault)
        for life in hit:
            if fault.kind == "slow":
                self._slow(life, fault)
            elif fault.kind == "link_down":
                lost += self._link_down(life, fault)
        if fault.kind != "slow":
            self._house.door.lost(lost)

    def _dropped(self, gone: list[tuple[Life, list[Job]]]) -> list[Job]:
        """All that are lost with replicas that are gone, or cannot be reached, and the jobs of each."""
        return [job for life, jobs in gone for job in self._house.door.dropped(life, jobs)]

    def _bring_back(self, life: Life, before: State, fault: Fault) -> None:
        """A replica that crashed is what it was `before` after a while; one that was to leave stays away."""
        down_ns, roster = self._down_ns(life, fault), self._house.roster
        members = [each.member for each in life.group]
        if before is State.WARM:
            roster.hold_warm(members, down_ns, life.number)
        elif before is not State.DRAINING:
            roster.start(members, down_ns, life.number)

    def _slow(self, life: Life, fault: Fault) -> None:
        station = life.station
        factor = SLOW_FACTOR if fault.factor is None else fault.factor
        if station is not None:
            station.slow_down(factor)
            Alarm(self._house.clock, self._over_ns(fault), lambda: station.speed_up(factor))

    def _cut_off(self, life: Life, fault: Fault) -> list[Job]:
        """It cannot be reached; returns the requests that are lost with it."""
        lost = self._dropped(self._house.roster.cut_off(life))
        Alarm(self._house.clock, self._over_ns(fault), lambda: self._house.roster.rejoin(life))
        return lost

    def _link_down(self, life: Life, fault: Fault) -> list[Job]:
        """It works and can be reached, but no KV comes to it from another replica or a shared store, or leaves it.

        Returns the requests that are lost with what was on its links.
        """
        life.unlinked += 1
        lost = self._house.door.unlinked(life)
        Alarm(self._house.clock, self._over_ns(fault), partial(self._link_up, life))
        return lost

    def _link_up(self, life: Life) -> None:
        life.unlinked -= 1
        self._house.door.stirred()

    def _update(self, lives: list[Life], fault: Fault) -> Generator[simpy.Event, None, None]:
        """One after the other: no more requests, wait for its answers, start it again, and only then the next."""
        roster = self._house.roster
        for life in lives:
            if self._house.door.done:
                return
            if life.state is not State.SERVING:
                continue
            gone = simpy.Event(self._house.clock)
            roster.drain(life, gone.succeed)
            yield gone
            down_ns = self._down_ns(life, fault)
            if not any(other.number == life.number and other.state is not State.GONE for other in roster.lives):
                roster.start([each.member for each in life.group], down_ns, life.number)
            yield self._house.clock.timeout(down_ns)

    def _down_ns(self, life: Life, fault: Fault) -> int:
        return self._startup.restart_ns(life.member.spec) if fault.for_s is None else round(fault.for_s * 1e9)

    def _over_ns(self, fault: Fault) -> int:
        return int(self._house.clock.now) + round((fault.for_s or 0.0) * 1e9)
