"""Prefill and decode apart from the first arrival to the last answer, in one compiled loop.

It is what simkit.cluster.kv_flow does on SimPy's clock where nothing breaks and nobody gives up, event for event, so
that both have one result to the byte.
"""

from simkit.by_address import by_address
from simkit.cluster.loops.apart_state import (
    ARRIVAL_NS,
    ARRIVAL_TURN,
    ARRIVALS,
    LANDING_HEAD,
    LANDING_TAIL,
    MOST_KEPT,
    NOW_NS,
    OVER,
    OWED_BYTES,
    READY_HEAD,
    READY_TAIL,
    ROLE,
    THERE_HEAD,
    THERE_TAIL,
    TURN,
    WAITING_HEAD,
    WAITING_TAIL,
    Yard,
)
from simkit.cluster.loops.apart_station import (
    NO_ROOM,
    RUN,
    ask,
    cached_tokens,
    give,
    hold,
    part_with,
    visit,
    wake_at,
    weight_of,
)
from simkit.cluster.loops.wire import begin_transfer, end_transfer, link_between
from simkit.cluster.rack import Rack
from simkit.compiled import called, compiled, inlined
from simkit.engine.state import I64, NEVER, ROWS

# why serve() returned: nothing is left to happen; a replica may not have room for its next requests; so much happened
IDLE, FULL, MORE = range(3)

# what happens next
NOTHING, WAKES, ENDS, ARRIVES, LANDS, IS_THERE = range(6)

FINISHED, REJECTED = 1, 2  # simkit.metrics.result.Status


@compiled
def serve(rack: Rack, yard: Yard, events: int) -> int:
    """Let the next `events` things happen, at most; says why it stopped."""
    rack, yard = by_address(rack), by_address(yard)
    at = yard.at
    for _ in range(events):
        what, which = NOTHING, 0
        when, turn = NEVER, 0
        late = False  # it goes after what else happens at that time
        for i in range(len(yard.stations)):
            station, link = yard.stations[i], yard.links[i]
            if station.due_ns < when or (station.due_ns == when != NEVER and station.due_turn < turn):
                what, which, when, turn = WAKES, i, station.due_ns, station.due_turn
            if link.due_ns < when or (link.due_ns == when != NEVER and link.due_turn < turn):
                what, which, when, turn = ENDS, i, link.due_ns, link.due_turn
        if at[ARRIVAL_NS] < when:
            what, when, turn, late = ARRIVES, at[ARRIVAL_NS], at[ARRIVAL_TURN], True
        if at[LANDING_HEAD] < at[LANDING_TAIL]:
            landing = yard.landing[at[LANDING_HEAD]]
            if landing.due_ns < when or (late and landing.due_ns == when and landing.due_turn < turn):
                what, when, turn, late = LANDS, landing.due_ns, landing.due_turn, True
        if at[THERE_HEAD] < at[THERE_TAIL]:
            there = yard.there[at[THERE_HEAD]]
            if there.due_ns < when or (late and there.due_ns == when and there.due_turn < turn):
                what, when, turn, late = IS_THERE, there.due_ns, there.due_turn, True
        if what == NOTHING:
            return IDLE
        if _may_be_full(rack.at, rack.requests.shape[1], yard):
            return FULL
        at[NOW_NS] = when
        if what == WAKES:
            _wake(rack, yard, which)
        elif what == ENDS:
            end_transfer(yard, which)
        elif what == ARRIVES:
            _arrive(rack, yard)
        elif what == LANDS:
            _land(yard)
        else:
            at[THERE_HEAD] += 1
            _arrived(rack, yard, yard.there[at[THERE_HEAD] - 1].request)
    return MORE


@inlined
def _may_be_full(replicas_at: I64, room: int, yard: Yard) -> bool:
    """Whether a replica may be given more requests than it has room for by what happens next; `replicas_at` [R, ..]."""
    if room > len(yard.trips):
        return False
    at = yard.at
    most = 3 + len(yard.told) + at[WAITING_TAIL] - at[WAITING_HEAD] + at[READY_TAIL] - at[READY_HEAD]
    fullest = 0
    for i in range(len(yard.stations)):
        fullest = max(fullest, replicas_at[i, ROWS])
    return bool(fullest + most > room)


@inlined
def _arrive(rack: Rack, yard: Yard) -> None:
    """The next request comes to the door."""
    at = yard.at
    request = at[ARRIVALS]
    at[ARRIVALS] += 1
    at[ARRIVAL_NS] = NEVER
    if request + 1 < len(yard.trips):
        # before anything else, so that of those at one time the workload's order holds
        at[TURN] += 1
        at[ARRIVAL_NS] = max(at[NOW_NS], rack.offered[0, request + 1].arrival_ns)
        at[ARRIVAL_TURN] = at[TURN]
    trip = yard.trips[request]
    if trip.fits == 0:
        _turn_away(rack.at, yard, request)
    elif trip.local == 1:
        yard.ready[at[READY_TAIL]] = request
        at[READY_TAIL] += 1
        _serve_ready(rack, yard)
    else:
        taker = _taker(rack, yard, request) if at[WAITING_HEAD] == at[WAITING_TAIL] else NO_ROOM
        if taker != NO_ROOM:
            _send(rack, yard, request, taker)
            return
        yard.waiting[at[WAITING_TAIL]] = request
        at[WAITING_TAIL] += 1
        _serve_waiting(rack, yard)


@inlined
def _turn_away(replicas_at: I64, yard: Yard, request: int) -> None:
    """It is too long: the first decode replica notes it."""
    trip = yard.trips[request]
    first = 0
    while yard.stations[first].prefills == 1:
        first += 1
    trip.target = first
    trip.turned_away = replicas_at[first, ROWS]
    trip.sent_ns = yard.at[NOW_NS]
    trip.over_ns = yard.at[NOW_NS]
    trip.status = REJECTED
    yard.at[OVER] += 1


@called
def _serve_waiting(rack: Rack, yard: Yard) -> None:
    """Send those who wait at the door on, as far as prefill replicas take them."""
    at = yard.at
    while at[WAITING_HEAD] < at[WAITING_TAIL]:
        request = yard.waiting[at[WAITING_HEAD]]
        taker = _taker(rack, yard, request)
        if taker == NO_ROOM:
            return
        at[WAITING_HEAD] += 1
        _send(rack, yard, request, taker)


@inlined
def _taker(rack: Rack, yard: Yard, request: int) -> int:
    """The prefill replica with least to do of those that take a request now, or NO_ROOM."""
    yard.at[ROLE] = 1
    count = _by_load(rack, yard, request)
    for k in range(count):
        i = yard.order[k]
        if yard.stations[i].claimed + yard.trips[request].prefill_blocks <= yard.stations[i].usable:
            return int(i)
    return NO_ROOM


@inlined
def _send(rack: Rack, yard: Yard, request: int, taker: int) -> None:
    """A prefill replica is to compute a prompt and keep it."""
    yard.trips[request].source = taker
    yard.stations[taker].claimed += yard.trips[request].prefill_blocks
    give(rack, yard, taker, request)


@called
def _serve_ready(rack: Rack, yard: Yard) -> None:
    """Let go to the decode replicas what there is room for, in order."""
    at = yard.at
    while at[READY_HEAD] < at[READY_TAIL]:
        request = yard.ready[at[READY_HEAD]]
        missing = _find_room(rack, yard, request)
        if missing == NO_ROOM:
            return
        at[READY_HEAD] += 1
        trip = yard.trips[request]
        trip.departs_ns = at[NOW_NS]
        at[OWED_BYTES] += missing * yard.block_bytes
        if missing == 0:
            _arrived(rack, yard, request)
        else:
            begin_transfer(yard, link_between(yard, trip.source, trip.target), request, missing * yard.block_bytes)


@inlined
def _find_room(rack: Rack, yard: Yard, request: int) -> int:
    """Hold blocks at the decode replica with least to do that has room; how many must come, or NO_ROOM."""
    trip = yard.trips[request]
    blocks = 0 if trip.local == 1 else (trip.prompt - 1) // yard.block_tokens
    yard.at[ROLE] = 0
    count = _by_load(rack, yard, request)
    for k in range(count):
        i = yard.order[k]
        missing = hold(rack, yard, i, request, blocks)
        if missing != NO_ROOM:
            trip.target = i
            return missing
    return NO_ROOM


@called
def _by_load(rack: Rack, yard: Yard, request: int) -> int:
    """Put the replicas of a role in order: tokens not done, and what of this prompt is not cached; how many."""
    count = 0
    for i in range(len(yard.stations)):
        if yard.stations[i].prefills == yard.at[ROLE]:
            yard.order[count] = i
            count += 1
    if count == 1:
        return count
    for k in range(count):
        i = yard.order[k]
        cached = cached_tokens(rack, yard, i, request) if yard.shares_content else 0
        load = yard.stations[i].tokens + yard.stations[i].coming_tokens - cached
        place = k
        while place > 0 and load < yard.loads[place - 1]:
            yard.loads[place] = yard.loads[place - 1]
            yard.order[place] = yard.order[place - 1]
            place -= 1
        yard.loads[place] = load
        yard.order[place] = i
    return count


@inlined
def _land(yard: Yard) -> None:
    """A transfer has crossed its link: who waits for it is told next."""
    at = yard.at
    at[TURN] += 1
    there = yard.there[at[THERE_TAIL]]
    there.request = yard.landing[at[LANDING_HEAD]].request
    there.due_ns = at[NOW_NS]
    there.due_turn = at[TURN]
    at[LANDING_HEAD] += 1
    at[THERE_TAIL] += 1


@called
def _arrived(rack: Rack, yard: Yard, request: int) -> None:
    """A request is at the replica that decodes it, with its KV."""
    trip = yard.trips[request]
    give(rack, yard, trip.target, request)
    trip.moved_ns += yard.at[NOW_NS] - max(trip.departs_ns, trip.prefilled_ns)
    if trip.local == 0:
        part_with(rack, yard, trip.source, request)
        _serve_waiting(rack, yard)


@inlined
def _wake(rack: Rack, yard: Yard, i: int) -> None:
    """Replica i tells of those who are answered by now, and sleeps until the next may be."""
    station = yard.stations[i]
    station.due_ns = NEVER
    while True:
        if station.late == 0:
            ask(yard, RUN, 0, 0)
            visit(rack, yard, i)
        if station.late == 0:
            return
        if station.late_ns > yard.at[NOW_NS]:
            wake_at(yard, i, station.late_ns)
            return
        _tell(rack, yard, i)


@inlined
def _tell(rack: Rack, yard: Yard, i: int) -> None:
    """The requests that a step of replica i has ended go on, or are answered."""
    station = yard.stations[i]
    count = station.late
    station.late = 0
    for k in range(count):
        yard.told[k] = rack.given[i, yard.late[i, k]]
        station.requests -= 1
        station.tokens -= weight_of(yard, i, yard.told[k])
        if station.prefills == 0:
            _disembark(yard, i, yard.told[k])
    for k in range(count):
        if station.prefills == 1:
            _prefilled(rack, yard, yard.told[k])
        else:
            _answered(rack, yard, yard.told[k])


@inlined
def _disembark(yard: Yard, i: int, request: int) -> None:
    """A request needs nothing more of replica i."""
    station = yard.stations[i]
    place = 0
    while yard.aboard[i, place] != request:
        place += 1
    station.aboard -= 1
    yard.aboard[i, place] = yard.aboard[i, station.aboard]


@inlined
def _prefilled(rack: Rack, yard: Yard, request: int) -> None:
    """A prefill replica has computed a prompt."""
    at = yard.at
    yard.trips[request].prefilled_ns = at[NOW_NS]
    for i in range(len(yard.stations)):
        at[MOST_KEPT] = max(at[MOST_KEPT], yard.stations[i].kept)
    yard.ready[at[READY_TAIL]] = request
    at[READY_TAIL] += 1
    _serve_ready(rack, yard)


@inlined
def _answered(rack: Rack, yard: Yard, request: int) -> None:
    """The last token of an answer is out."""
    at = yard.at
    trip = yard.trips[request]
    trip.status = FINISHED
    trip.over_ns = at[NOW_NS]
    at[OVER] += 1
    _serve_ready(rack, yard)
    if at[WAITING_HEAD] < at[WAITING_TAIL]:
        _serve_waiting(rack, yard)
