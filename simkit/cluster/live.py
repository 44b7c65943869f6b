"""A fleet on SimPy's clock: for everything that has processes, and for routers that the compiled loop does not know."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import simpy

from simkit.cluster.admission import Admission
from simkit.cluster.alarm import Alarm
from simkit.cluster.client import Clients
from simkit.cluster.door import Door
from simkit.cluster.kv_flow import KvFlow
from simkit.cluster.kv_result import came_tokens, prefilled_by, ways_of, whole_way, without_moved_hits
from simkit.cluster.lockstep import check_lockstep
from simkit.cluster.moving import NOTHING_MOVES, Moving, check_moving
from simkit.cluster.offers import Offers, event_capacity
from simkit.cluster.resend import LostJobs
from simkit.cluster.result import (
    FleetResult,
    LifeSpan,
    Seen,
    accounts_of,
    merged_columns,
    rows_of_each,
    seen_by_clients,
)
from simkit.cluster.roster import Life, Member, Roster, groups_of
from simkit.cluster.routers import Router
from simkit.cluster.routers.reported import Reader
from simkit.cluster.view import FleetView
from simkit.cluster.way import Choice, Straight, Way
from simkit.engine.simulate import result_of
from simkit.metrics.result import RunResult
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

ARRIVALS_A_REPORT = 256  # requests over between two calls of `on_progress`
Progress = Callable[[int], None]


@dataclass(frozen=True)
class House:
    """What runs on the clock, for processes that act on the fleet: sessions, faults, scaling."""

    clock: simpy.Environment
    workload: Workload
    roster: Roster
    door: Door


Process = Callable[[House], None]
"""Starts something on the clock: called once, before time begins. What it starts must end when `door.done`."""


@dataclass(frozen=True)
class Rules:
    """How a fleet on the clock behaves; by default as one without a door."""

    admission: Admission = field(default_factory=Admission)
    clients: Clients = field(default_factory=Clients)
    lost_jobs: LostJobs = field(default_factory=LostJobs)


def serve_live(
    workload: Workload,
    members: Sequence[Member],
    name: str,
    router: Router | None,
    rules: Rules,
    rng: np.random.Generator,
    processes: Sequence[Process] = (),
    arrivals: Process | None = None,
    on_progress: Progress | None = None,
    to_come: Sequence[Member] = (),
    moving: Moving = NOTHING_MOVES,
) -> FleetResult:
    """Serve a workload; `members` are there from the start, `processes` may add and take away.

    `arrivals` brings the requests in; by default each comes at its own time. `rng` feeds the clients' back-off.
    `to_come` are what `processes` may add. `moving` says which KV goes over links; without a router, which only prefill
    replicas that are apart may be, the one with least to do is sent a request. Raises InputError for KV that cannot be
    moved.
    """
    house, flow = _new_house(workload, members, [*members, *to_come], name, router, rules, rng, moving)
    clock = house.clock
    for group in groups_of(members):
        house.roster.start(group, 0)
    if isinstance(router, Reader):
        clock.process(_reports(house, router))
    (arrivals or open_arrivals)(house)
    for process in processes:
        process(house)
    if on_progress is not None:
        house.door.on_over.append(_told(house.door, on_progress))
    complete = True
    try:
        clock.run()
    except KeyboardInterrupt:
        complete = False
    return _result(house, flow, name, complete)


def _new_house(
    workload: Workload,
    members: Sequence[Member],
    everybody: Sequence[Member],
    name: str,
    router: Router | None,
    rules: Rules,
    rng: np.random.Generator,
    moving: Moving,
) -> tuple[House, KvFlow | None]:
    """A house that is empty as yet, and the way through it where KV is moved."""
    for member in everybody:
        check_lockstep(member.spec)
    clock = simpy.Environment(initial_time=0)
    offers = Offers(workload)
    first = offers.to(everybody[0].spec)
    expected = (first.requests["prompt"].astype(np.int64) + first.requests["predicted"]).tolist()
    roster = Roster(clock)
    choice = None if router is None else Choice(name, router, FleetView(clock, workload, expected))
    events, limit = event_capacity(max(1, len(members))), rules.admission.replica_limit
    flow = None
    if moving:
        check_moving(moving, everybody)
        flow = KvFlow(clock, roster, offers, events, choice, limit, moving, rules.lost_jobs, everybody)
        way: Way = flow
    else:
        assert choice is not None, "only where prefill is apart there may be no router"
        way = Straight(clock, roster, offers, events, choice, limit)
    roster.new_station = way.station
    door = Door(clock, workload, roster, way, expected, rules.admission, rules.clients, rules.lost_jobs, rng)
    return House(clock, workload, roster, door), flow


def open_arrivals(house: House) -> None:
    """Each request arrives at its own time, whatever became of others."""
    arrival_ns = (house.workload.arrival_us * 1000).tolist()

    def come(request: int) -> None:
        # the next is put on the clock first, so that of those at one time the workload's order holds
        if request + 1 < len(arrival_ns):
            Alarm(house.clock, arrival_ns[request + 1], lambda: come(request + 1))
        house.door.arrive(request)

    if arrival_ns:
        Alarm(house.clock, arrival_ns[0], lambda: come(0))


def _reports(house: House, router: Reader) -> Generator[simpy.Event, None, None]:
    """Tell a router of the loads whenever it is due."""
    while not house.door.done:
        # twice: what ends at this very moment is told of before
        turn = simpy.Event(house.clock)
        Alarm(house.clock, int(house.clock.now), turn.succeed, before_others=True)
        yield turn
        loads = {
            life.number: life.station.outstanding_tokens if router.load == "tokens" else life.station.outstanding
            for life in house.roster.serving
            if life.station is not None
        }
        router.report(int(house.clock.now), loads)
        due = simpy.Event(house.clock)
        Alarm(house.clock, int(house.clock.now) + router.age_ns, due.succeed, before_others=True)
        yield due


def _told(door: Door, on_progress: Progress) -> Callable[[int], None]:
    def tell(request: int) -> None:
        if door.over % ARRIVALS_A_REPORT == 0:
            on_progress(door.over)

    return tell


def _result(house: House, flow: KvFlow | None, name: str, complete: bool) -> FleetResult:
    """All that came of it."""
    workload, door, lives = house.workload, house.door, house.roster.lives
    replicas = tuple(_life_result(house, life, complete) for life in lives)
    n = len(workload)
    replica_of = np.array([-1 if job is None else job.life for job in door.last], dtype=np.int32)
    row_of = np.zeros(n, dtype=np.int64)
    for life in lives:
        for row, job in enumerate(life.station.jobs if life.station is not None else ()):
            if door.last[job.request] is job:
                row_of[job.request] = row
    mine = rows_of_each(replica_of, len(replicas))
    parts = [(rows, row_of[rows], result.requests) for rows, result in zip(mine, replicas, strict=True)]
    columns, outside_ns = _seen(door).columns(merged_columns(workload, parts), workload)
    trips = [None if flow is None or job is None else flow.trip_of(job) for job in door.last]
    if flow is not None:
        columns = whole_way(columns, ways_of(trips, lives), replicas)
        replicas = tuple(
            without_moved_hits(result, came_tokens(life)) for result, life in zip(replicas, lives, strict=True)
        )
    handover = None if flow is None else flow.handover(door.last)
    arrived = sum(ns >= 0 for ns in door.arrived_ns)
    accounts = accounts_of(
        columns.status, arrived, sum(door.attempts), sum(door.retries), n - arrived if door.done else 0
    )
    ends = [int(result.end_ns) for result in replicas]
    end_ns = max([*door.over_ns, *ends, *(life.ended_ns or 0 for life in lives), 0])
    fleet = FleetResult(
        router=name,
        replicas=replicas,
        lives=tuple(_span(life, end_ns) for life in lives),
        requests=columns,
        replica_of=replica_of,
        row_of=row_of,
        outside_ns=outside_ns,
        accounts=accounts,
        end_ns=end_ns,
        complete=complete,
        handover=handover,
        prefill_of=None if handover is None else prefilled_by(trips),
        tiers=() if flow is None else flow.tier_totals(),
    )
    return seen_by_clients(fleet, [life.member.spec for life in lives])


def _span(life: Life, end_ns: int) -> LifeSpan:
    """A life, as far as it was over when the run was: who was starting then never became ready."""
    ready_ns = None if life.ready_ns is None or life.ready_ns > end_ns else life.ready_ns
    return LifeSpan(life.number, life.member.pool, life.gpus, life.asked_ns, ready_ns, life.ended_ns)


def _life_result(house: House, life: Life, complete: bool) -> RunResult:
    """What one life of a replica has done, over the jobs that it was given."""
    station = life.station or house.roster.new_station(life)  # one that never was ready has done nothing
    jobs = station.jobs
    rows = np.array([job.request for job in jobs], dtype=np.int64)
    mine = replace(
        selected(house.workload, rows),
        prompt_tokens=np.array([job.prompt_tokens for job in jobs], dtype=np.int32),
        output_tokens=np.array([job.output_tokens for job in jobs], dtype=np.int32),
    )
    accepted = np.array([i for i, job in enumerate(jobs) if job.row >= 0], dtype=np.int64)
    result = result_of(station.finish(), mine, accepted, complete)
    sent = np.array([job.sent_ns for job in jobs], dtype=np.int64)
    return replace(result, requests=replace(result.requests, arrival_ns=sent))


def _seen(door: Door) -> Seen:
    """What the door knows of all requests."""
    return Seen(
        status=np.array(door.status, dtype=np.int8),
        arrived_ns=np.array(door.arrived_ns, dtype=np.int64),
        sent_ns=np.array([0 if job is None else job.sent_ns for job in door.last], dtype=np.int64),
        over_ns=np.array(door.over_ns, dtype=np.int64),
        first_token_ns=np.array(door.first_token_ns, dtype=np.int64),
        generated=np.array(door.generated, dtype=np.int64),
    )
