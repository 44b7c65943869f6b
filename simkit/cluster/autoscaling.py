"""Replicas come and go with the load: a rule looks at a pool at intervals, starts what is missing, drains the rest."""

from collections import deque
from collections.abc import Callable, Generator

import simpy
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simkit.cluster.live import House
from simkit.cluster.roster import Life, Member, State
from simkit.cluster.scaling_rules import RuleSpec, Signals, Targets, rule_of
from simkit.cluster.startup import Startup
from simkit.metrics.result import Status

MOST_HOPELESS_LOOKS = 1000  # in a row at which requests wait, there is no replica, and the rule wants none


class Autoscaling(BaseModel):
    """Bounds, rule and inertia of one pool.

    The defaults of interval and of waiting before going down are those of Kubernetes' HorizontalPodAutoscaler (15 s;
    scale-down stabilization 300 s: the most that any look of that time asked for).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    least: int = Field(default=1, ge=0, le=100_000)
    most: int = Field(ge=1, le=100_000)
    rule: RuleSpec
    pool: str = "default"
    interval_s: float = Field(default=15.0, gt=0, le=1e6)
    up_cool_down_s: float = Field(default=0.0, ge=0, le=1e6, description="after going up, before going up again")
    down_stabilization_s: float = Field(default=300.0, ge=0, le=1e6)
    warm: int = Field(default=0, ge=0, le=100_000, description="replicas that are loaded, paid for and held back")
    warm_ready_s: float = Field(default=1.0, ge=0, le=1e6, description="until one of these serves")

    @model_validator(mode="after")
    def _bounds(self) -> "Autoscaling":
        if self.most < self.least:
            raise ValueError(f"most={self.most} is below least={self.least}")
        return self


def autoscaling_process(spec: Autoscaling, member: Member, startup: Startup) -> Callable[[House], None]:
    """The process that scales a pool; new replicas are like `member`, as many at a time as share experts."""

    def begin(house: House) -> None:
        house.clock.process(Autoscaler(spec, member, startup, house).run())

    return begin


class Autoscaler:
    """Looks, decides, acts."""

    def __init__(self, spec: Autoscaling, member: Member, startup: Startup, house: House) -> None:
        self._spec = spec
        self._group = [member] * member.engines
        self._cold_ns = startup.cold_ns(member.spec)
        self._house = house
        self._rule = rule_of(spec.rule)
        self._asked: deque[tuple[int, int]] = deque()  # (ns, replicas) that recent looks asked for
        self._up_ns = -(1 << 62)  # when it last went up
        self._busy_ns: dict[int, int] = {}  # by life, at the last look
        self._met = self._answered = self._arrived = 0
        house.door.on_over.append(self._over)

    def run(self) -> Generator[simpy.Event, None, None]:
        """Look at intervals, as long as the fleet has something to do."""
        spec, roster = self._spec, self._house.roster
        for _ in range(spec.warm):
            roster.hold_warm(self._group, self._cold_ns)
        hopeless = 0
        while not self._house.door.done and hopeless < MOST_HOPELESS_LOOKS:
            yield self._house.clock.timeout(round(spec.interval_s * 1e9))
            if self._house.door.done:
                return
            seen = self._look()
            desired = self._rule(seen)
            self._act(desired)
            stuck = desired <= 0 and seen.replicas + seen.starting == 0 and seen.queue > 0
            hopeless = hopeless + 1 if stuck else 0

    def _over(self, request: int) -> None:
        """Judge a request that is over by the rule's targets, if it has any."""
        rule, door = self._spec.rule, self._house.door
        if not isinstance(rule, Targets):
            return
        self._answered += 1
        job = door.last[request]
        if door.status[request] is not Status.FINISHED or job is None or job.life < 0:
            return
        station = self._house.roster.lives[job.life].station
        if station is None:
            return
        first = door.first_token_ns[request] or station.first_token_ns(job)
        tokens = door.generated[request] + job.output_tokens
        tpot_s = (door.over_ns[request] - first) / 1e9 / (tokens - 1) if tokens > 1 else 0.0
        self._met += rule.met((first - door.arrived_ns[request]) / 1e9, tpot_s)

    def _lives(self, *states: State) -> list[Life]:
        """The first of each group."""
        lives, pool = self._house.roster.lives, self._spec.pool
        return [life for life in lives if life.state in states and life.member.pool == pool and life is life.group[0]]

    def _look(self) -> Signals:
        groups = self._lives(State.SERVING)
        serving = [life for group in groups for life in group.group]
        interval_ns = round(self._spec.interval_s * 1e9)
        busy = 0.0
        waiting = 0
        for life in serving:
            assert life.station is not None, "it serves"
            total = life.station.busy_ns()
            busy += min(1.0, (total - self._busy_ns.get(life.index, 0)) / interval_ns)
            self._busy_ns[life.index] = total
            waiting += life.station.running_and_waiting()[1]
        arrived = self._house.door.arrivals
        attainment = self._met / self._answered if self._answered else None
        signals = Signals(
            now_s=self._house.clock.now / 1e9,
            replicas=len(groups),
            starting=len([life for life in self._lives(State.STARTING) if not life.warming]),
            queue=self._house.door.waiting(self._spec.pool),
            outstanding=sum(life.station.booked for life in serving if life.station is not None),
            waiting=waiting,
            utilisation=busy / len(serving) if serving else 0.0,
            attainment=attainment,
            arrivals_per_s=(arrived - self._arrived) / self._spec.interval_s,
        )
        self._arrived = arrived
        self._met = self._answered = 0
        return signals

    def _act(self, desired: int) -> None:
        """Go to what the rule wants, within bounds and inertia."""
        spec, now = self._spec, int(self._house.clock.now)
        desired = max(spec.least, min(spec.most, desired))
        self._asked.append((now, desired))
        while self._asked[0][0] < now - round(spec.down_stabilization_s * 1e9):
            self._asked.popleft()
        starting = [life for life in self._lives(State.STARTING) if not life.warming]
        have = len(self._lives(State.SERVING, State.CUT_OFF)) + len(starting)
        if desired > have and now - self._up_ns >= round(spec.up_cool_down_s * 1e9):
            self._up_ns = now
            for _ in range(desired - have):
                self._add()
        elif (most := max(asked for _, asked in self._asked)) < have:
            for _ in range(have - most):
                self._take_away()

    def _add(self) -> None:
        """A warm replica, which another replaces, or a cold one."""
        roster = self._house.roster
        warm = self._lives(State.WARM)
        if warm:
            roster.activate(warm[0], round(self._spec.warm_ready_s * 1e9))
            roster.hold_warm(self._group, self._cold_ns)
        else:
            roster.start(self._group, self._cold_ns)

    def _take_away(self) -> None:
        """First what is not ready yet, then who has least to do, the latest to come."""
        starting = [life for life in self._lives(State.STARTING) if not life.warming]
        if starting:
            self._house.roster.drain(starting[-1])
            return
        serving = self._lives(State.SERVING)
        if serving:
            self._house.roster.drain(min(serving, key=lambda life: (_booked(life), -life.number)))


def _booked(life: Life) -> int:
    """Jobs that a group has."""
    return sum(each.station.booked for each in life.group if each.station is not None)
