"""A replica in the compiled loop of prefill and decode apart, look for look as simkit.cluster.kv_station has it."""

from simkit.by_address import by_address
from simkit.cluster.loops.apart_state import ABOUT, ACT, NOW_NS, NUMBER, TURN, Yard
from simkit.cluster.loops.kept_blocks import keep, land, let_go, make_room
from simkit.cluster.loops.lookahead import earliest_end, steps_of
from simkit.cluster.loops.routed import pool_at, recorder_at, tables_at
from simkit.cluster.loops.until_end import COUNT, END, cached_blocks, list_ended
from simkit.cluster.rack import Rack
from simkit.compiled import called, inlined
from simkit.engine.loop import turn
from simkit.engine.state import (
    FLUSH,
    I32,
    IN_FLIGHT,
    NEVER,
    NEXT_ARRIVAL,
    NOW,
    PENDING,
    ROWS,
    UNFINISHED,
    WAITING,
    Replica,
)

# what visit() is to do besides catching up
RUN, LOOK, CACHED, HOLD, LAND, PART = range(6)
NO_ROOM = -1


@inlined
def cached_tokens(rack: Rack, yard: Yard, i: int, request: int) -> int:
    """How many of a request's leading prompt tokens replica i has cached now."""
    asked = rack.offered[rack.shape[i].kind, request]
    named = min(asked.content_blocks, (asked.prompt - 1) // yard.block_tokens)
    if named == 0:
        return 0
    ask(yard, CACHED, request, named)
    return visit(rack, yard, i) * yard.block_tokens


@inlined
def hold(rack: Rack, yard: Yard, i: int, request: int, blocks: int) -> int:
    """Hold the first blocks of a request that comes; how many of them must come, or NO_ROOM."""
    ask(yard, HOLD, request, blocks)
    missing = visit(rack, yard, i)
    if missing != NO_ROOM:
        station = yard.stations[i]
        yard.trips[request].lacking = yard.trips[request].decode_blocks - blocks
        yard.aboard[i, station.aboard] = request
        station.aboard += 1
        station.coming_tokens += yard.trips[request].weight
    return missing


@called
def give(rack: Rack, yard: Yard, i: int, request: int) -> None:
    """A request arrives at replica i, and its KV with it; there is room for it."""
    now = yard.at[NOW_NS]
    station, trip, shape = yard.stations[i], yard.trips[request], rack.shape[i]
    if trip.blocks > 0 and station.prefills == 0:
        ask(yard, LOOK, request, 0)  # turns that began before must not find what comes now
        visit(rack, yard, i)
    row = rack.at[i, ROWS]
    rack.given[i, row] = request
    rack.requests[i, row] = rack.offered[shape.kind, request]
    asked = rack.requests[i, row]
    asked.arrival_ns = now
    if station.prefills == 1:
        asked.output = 1
        asked.max_tokens = 1
        trip.prefill_row = row
        trip.prefill_sent_ns = now
    else:
        trip.decode_row = row
        trip.sent_ns = now
    rack.at[i, ROWS] = row + 1
    station.requests += 1
    station.tokens += weight_of(yard, i, request)
    steps = steps_of(rack.limits[rack.shape[i].kind].speculative_tokens, asked.output)
    early = now + steps * shape.least_step_ns
    if station.due_ns == NEVER or station.asked_ns > early:
        wake_at(yard, i, early)
    if station.prefills == 1:
        return
    station.coming_tokens -= yard.trips[request].weight
    if trip.blocks > 0:
        ask(yard, LAND, request, row)
        visit(rack, yard, i)
        yard.landed[i, station.landed] = request
        station.landed += 1


@inlined
def part_with(rack: Rack, yard: Yard, i: int, request: int) -> None:
    """The KV that replica i computed for a request is no longer wanted there."""
    ask(yard, PART, request, 0)
    visit(rack, yard, i)
    yard.stations[i].claimed -= yard.trips[request].prefill_blocks


@inlined
def weight_of(yard: Yard, i: int, request: int) -> int:
    """What routers take a request for at replica i."""
    trip = yard.trips[request]
    return int(trip.prompt if yard.stations[i].prefills == 1 else trip.weight)


@inlined
def wake_at(yard: Yard, i: int, at_ns: int) -> None:
    """Wake replica i at a time, and not at another."""
    station = yard.stations[i]
    if station.due_ns != NEVER and station.asked_ns == at_ns:
        return
    yard.at[TURN] += 1
    station.asked_ns = at_ns
    station.due_ns = max(at_ns, yard.at[NOW_NS])
    station.due_turn = yard.at[TURN]


@inlined
def ask(yard: Yard, act: int, request: int, number: int) -> None:
    """Say what `visit` is to do; of a function that is handed constants numba makes a copy for each."""
    yard.at[ACT] = act
    yard.at[ABOUT] = request
    yard.at[NUMBER] = number


@called
def visit(rack: Rack, yard: Yard, i: int) -> int:
    """Do what was asked of replica i, once it has caught up: it runs from here only, for the engine is compiled in."""
    act, request, number = yard.at[ACT], yard.at[ABOUT], yard.at[NUMBER]
    station, shape, trip = yard.stations[i], rack.shape[i], yard.trips[request]
    # no function of its own: numba returns no tuple with a record in it
    replica = Replica(
        rack.limits[shape.kind],
        rack.requests[i],
        rack.content_ids[shape.first_content_id : shape.first_content_id + shape.content_ids],
        rack.aborts,
        rack.progress[i],
        rack.ledger[i],
        pool_at(rack, i),
        rack.entries[i],
        rack.batches[i],
        recorder_at(rack, i),
        rack.running[i],
        rack.waiting[i],
        rack.tenants[i],
        rack.at[i],
    )
    r = by_address(replica)
    nodes = yard.nodes[i]
    if act == LAND:
        blocks = yard.scratch[: trip.blocks]
        node = trip.held_node
        for k in range(len(blocks)):
            blocks[k] = nodes[node].block
            node = nodes[node].after
        land(r, number, trip.cached, blocks)
        node = trip.held_node
        for k in range(len(blocks)):
            nodes[node].block = blocks[k]
            node = nodes[node].after
        return 0
    now = yard.at[NOW_NS]
    tables = by_address(tables_at(rack, shape.tables))
    at = r.at
    begun = station.late == 0 and station.there_ns != now
    while begun and station.late == 0:
        if at[UNFINISHED] == 0 and at[IN_FLIGHT] == 0 and at[FLUSH] == 0:
            if at[NEXT_ARRIVAL] == at[ROWS]:
                station.next_ns = NEVER
                break
            at[NOW] = max(at[NOW], r.requests[at[NEXT_ARRIVAL]].arrival_ns)
        if at[NOW] >= now:
            station.next_ns = earliest_end(r, shape.least_step_ns)
            break
        before = at[UNFINISHED] - at[NEXT_ARRIVAL]
        turn(r, tables)
        if at[UNFINISHED] - at[NEXT_ARRIVAL] != before and list_ended(r, yard.late[i], yard.out[i]) > 0:
            station.late = yard.out[i, COUNT]
            station.late_ns = yard.out[i, END]
            if station.prefills == 1:
                _keep_ended(rack, yard, i, r)
        if station.landed > 0:
            _release_admitted(yard, i, r)
    if begun and station.late == 0:
        station.there_ns = now
        if station.requests > 0 and station.next_ns != NEVER:
            wake_at(yard, i, max(station.next_ns, now + 1))
    if act == RUN:
        return 0
    if station.late > 0:
        wake_at(yard, i, station.late_ns)
    if act == LOOK:
        return 0
    if act == CACHED:
        r.requests[at[ROWS]] = rack.offered[shape.kind, request]
        return int(cached_blocks(r, at[ROWS], number))
    if act == PART:
        station.kept -= _let_go_chain(yard, i, trip.kept_node, r)
        return 0
    return _hold(rack, yard, i, request, r, number)


@inlined
def _hold(rack: Rack, yard: Yard, i: int, request: int, r: Replica, number: int) -> int:
    """Hold the first `number` blocks of a request, as simkit.cluster.kv_station.KvStation.make_room."""
    station, trip = yard.stations[i], yard.trips[request]
    most = 0
    for k in range(station.aboard):
        most = max(most, yard.trips[yard.aboard[i, k]].lacking)
    if station.holding + number + max(most, trip.decode_blocks - number) > station.usable:
        return NO_ROOM
    trip.blocks = number
    trip.cached = 0
    if number == 0:
        return 0
    r.requests[r.at[ROWS]] = rack.offered[rack.shape[i].kind, request]
    blocks = yard.scratch[:number]
    cached = make_room(r, r.at[ROWS], 1, blocks)
    if cached < 0:
        return NO_ROOM
    trip.cached = cached
    trip.held_node = _chain(yard, i, blocks)
    station.holding += number
    return int(number - cached)


@inlined
def _keep_ended(rack: Rack, yard: Yard, i: int, r: Replica) -> None:
    """The prompts that the latest step ended are kept for those who will fetch them."""
    station = yard.stations[i]
    for k in range(station.late):
        row = yard.late[i, k]
        request = rack.given[i, row]
        blocks = yard.scratch[: (r.requests[row].prompt + yard.block_tokens - 1) // yard.block_tokens]
        keep(r, row, blocks)
        yard.trips[request].kept_node = _chain(yard, i, blocks)
        station.kept += len(blocks)


@inlined
def _release_admitted(yard: Yard, i: int, r: Replica) -> None:
    """What was held for requests that have been admitted by now is theirs."""
    station = yard.stations[i]
    left = 0
    for k in range(station.landed):
        request = yard.landed[i, k]
        trip = yard.trips[request]
        status = r.progress[trip.decode_row].status
        if status in (PENDING, WAITING):
            yard.landed[i, left] = request
            left += 1
            continue
        held = _let_go_chain(yard, i, trip.held_node, r)
        station.holding -= held
        trip.lacking += held
    station.landed = left


@inlined
def _chain(yard: Yard, i: int, blocks: I32) -> int:
    """Note blocks of a request at replica i; returns the first node. There are as many nodes as blocks."""
    station, nodes = yard.stations[i], yard.nodes[i]
    first = station.free_node
    last = first
    for k in range(len(blocks)):
        last = station.free_node
        nodes[last].block = blocks[k]
        station.free_node = nodes[last].after
    nodes[last].after = 0
    return int(first)


@inlined
def _let_go_chain(yard: Yard, i: int, first: int, r: Replica) -> int:
    """Hold the blocks from a node on at replica i no longer; how many they are."""
    station, nodes = yard.stations[i], yard.nodes[i]
    count = 0
    node = first
    last = first
    while node != 0:
        yard.scratch[count] = nodes[node].block
        count += 1
        last = node
        node = nodes[node].after
    let_go(r, yard.scratch[:count])
    nodes[last].after = station.free_node
    station.free_node = first
    return count
