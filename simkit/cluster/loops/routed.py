"""The fleet's whole life under a router that looks at the load: requests arrive, replicas catch up, the router chooses.

A replica runs as far ahead as nobody can notice and is looked at again when one of its requests may have ended.
"""

from simkit.by_address import by_address
from simkit.cluster.loops.lookahead import earliest_end, steps_of
from simkit.cluster.loops.until_end import answered_at
from simkit.cluster.rack import Rack
from simkit.compiled import compiled, inlined
from simkit.engine.loop import turn
from simkit.engine.ring import ring_row
from simkit.engine.state import (
    F64,
    FLUSH,
    I32,
    I64,
    IN_FLIGHT,
    NEVER,
    NEXT_ARRIVAL,
    NOW,
    ROWS,
    UNFINISHED,
    Pool,
    Recorder,
    Replica,
)
from simkit.models.steptables import StepTables

# what a router minds
REQUESTS, TOKENS = range(2)
# how it chooses: the least loaded of all; the better of two drawn; the least loaded as of the latest report
LEAST, BETTER_OF_TWO, LEAST_REPORTED = range(3)

# why route() returned: at the end of its requests, or because a replica has no room for the next
DONE, FULL = range(2)


@compiled
def route(
    rack: Rack, first: int, last: int, rule: int, load: int, age_ns: int, reported: I64, draws: F64, chosen: I32
) -> tuple[int, int]:
    """Let the workload's requests `first` to `last` arrive; returns (why it ended, the next request).

    `reported` [R + 1] holds the loads of the latest report and, in its last place, when it was; `draws` [n, 2] are
    uniform over 0 to 1; `chosen` [n] is filled in.
    """
    count = len(rack.counters)
    for request in range(first, last):
        now = rack.offered[0, request].arrival_ns
        until = now
        looks = count
        one, other = 0, 0
        if rule == BETTER_OF_TWO:
            looks = min(2, count)
            one = int(draws[request, 0] * count)
            other = (one + 1 + int(draws[request, 1] * (count - 1))) % count
        elif rule == LEAST_REPORTED:
            until = now // age_ns * age_ns
            looks = count if until > reported[count] else 0
        # the only place from which replicas run: the engine is compiled into each
        for k in range(looks):
            i = k
            if rule == BETTER_OF_TWO:
                i = one if k == 0 else other
            if rack.counters[i].wake_ns <= until:
                catch_up(rack, i, until)
        if rule == BETTER_OF_TWO:
            choice = other if load_of(rack, other, load) < load_of(rack, one, load) else one
        elif rule == LEAST_REPORTED:
            if looks > 0:
                _report(rack, load, reported, until)
            choice = _least_reported(reported, count, draws[request, 0])
        else:
            choice = _least_loaded(rack, load, draws[request, 0])
        if not rack.fits[rack.shape[choice].kind, request]:
            chosen[request] = choice
            continue
        if rack.at[choice, ROWS] == rack.requests.shape[1]:
            return FULL, request
        chosen[request] = choice
        give(rack, choice, request, now)
    return DONE, last


@inlined
def load_of(rack: Rack, i: int, load: int) -> int:
    """Requests or tokens that a replica has not answered."""
    return int(rack.counters[i].tokens if load == TOKENS else rack.counters[i].requests)


@inlined
def _least_loaded(rack: Rack, load: int, draw: float) -> int:
    """The least loaded replica; of several, the one that `draw` picks."""
    least = NEVER
    equal = 0
    for i in range(len(rack.counters)):
        here = load_of(rack, i, load)
        if here < least:
            least = here
            equal = 1
        elif here == least:
            equal += 1
    pick = int(draw * equal)
    for i in range(len(rack.counters)):
        if load_of(rack, i, load) == least:
            if pick == 0:
                return i
            pick -= 1
    return 0


@inlined
def _least_reported(reported: I64, count: int, draw: float) -> int:
    """The same among loads that were reported."""
    least = NEVER
    equal = 0
    for i in range(count):
        if reported[i] < least:
            least = reported[i]
            equal = 1
        elif reported[i] == least:
            equal += 1
    pick = int(draw * equal)
    for i in range(count):
        if reported[i] == least:
            if pick == 0:
                return i
            pick -= 1
    return 0


@inlined
def _report(rack: Rack, load: int, reported: I64, at_ns: int) -> None:
    """Note all loads as they are; replicas have caught up to `at_ns`."""
    count = len(rack.counters)
    for i in range(count):
        reported[i] = load_of(rack, i, load)
    reported[count] = at_ns


@inlined
def give(rack: Rack, i: int, request: int, now: int) -> None:
    """Send a request to a replica, which has room for it."""
    kind = rack.shape[i].kind
    row = rack.at[i, ROWS]
    rack.given[i, row] = request
    rack.requests[i, row] = rack.offered[kind, request]
    rack.at[i, ROWS] = row + 1
    counter = rack.counters[i]
    counter.requests += 1
    counter.tokens += rack.offered[kind, request].prompt + rack.offered[kind, request].predicted
    steps = steps_of(rack.limits[kind].speculative_tokens, rack.offered[kind, request].output)
    counter.wake_ns = min(counter.wake_ns, now + steps * rack.shape[i].least_step_ns)


@inlined
def catch_up(rack: Rack, i: int, now: int) -> None:
    """Run every turn of a replica that begins before `now`, and count those answered by then as such."""
    counter = rack.counters[i]
    if counter.late > 0 and counter.late_ns <= now:
        counter.requests -= counter.late
        counter.tokens -= counter.late_tokens
        counter.late = 0
    shape = rack.shape[i]
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
    r, tables = by_address(replica), by_address(tables_at(rack, shape.tables))
    at = r.at
    while counter.late == 0:
        if at[UNFINISHED] == 0 and at[IN_FLIGHT] == 0 and at[FLUSH] == 0:
            if at[NEXT_ARRIVAL] == at[ROWS]:
                counter.wake_ns = NEVER
                return
            at[NOW] = max(at[NOW], r.requests[at[NEXT_ARRIVAL]].arrival_ns)
        if at[NOW] >= now:
            break
        before = at[UNFINISHED] - at[NEXT_ARRIVAL]
        turn(r, tables)
        ended = before - (at[UNFINISHED] - at[NEXT_ARRIVAL])
        if ended > 0:
            count_ended(rack, r, i, now, ended)
    counter.wake_ns = counter.late_ns if counter.late > 0 else earliest_end(r, shape.least_step_ns)


@inlined
def count_ended(rack: Rack, r: Replica, i: int, now: int, ended: int) -> None:
    """Count out the requests that the step committed last has ended, now or, if it ends later, then."""
    row = ring_row(r, -1)
    end = r.batches[row].end
    tokens = 0
    for k in range(r.batches[row].length):
        request = r.entries[row, k].request
        if answered_at(r, request, end):
            tokens += r.requests[request].prompt + r.requests[request].predicted
    counter = rack.counters[i]
    if end <= now:
        counter.requests -= ended
        counter.tokens -= tokens
        return
    counter.late = ended
    counter.late_tokens = tokens
    counter.late_ns = end


@inlined
def pool_at(rack: Rack, i: int) -> Pool:
    return Pool(
        rack.blocks[i, : rack.shape[i].blocks],  # type: ignore[arg-type]
        rack.places[i, : rack.shape[i].places],  # type: ignore[arg-type]
        rack.table[i],
        rack.free_slots[i],
        rack.counts[i],
    )


@inlined
def recorder_at(rack: Rack, i: int) -> Recorder:
    return Recorder(
        rack.itl[i],
        rack.batch_requests[i],
        rack.batch_tokens[i],
        rack.series[i],
        rack.events[i],
        rack.admitted[i],
        rack.victims[i],
    )


@inlined
def tables_at(rack: Rack, i: int) -> StepTables:
    """The step tables of number i."""
    span = rack.table_spans[i]
    values = rack.table_values
    decode = values[span.decode_ns : span.decode_ns + span.decode_ns_rows * span.decode_ns_columns]
    window = values[
        span.decode_window_ns : span.decode_window_ns + span.decode_window_ns_rows * span.decode_window_ns_columns
    ]
    linear = values[
        span.stage_linear_ns : span.stage_linear_ns + span.stage_linear_ns_rows * span.stage_linear_ns_columns
    ]
    longest = values[span.alone_ns : span.alone_ns + span.alone_ns_rows * span.alone_ns_columns]
    state = values[span.state_ns : span.state_ns + span.state_ns_rows * span.state_ns_columns]
    prefill = values[span.prefill_ns : span.prefill_ns + span.prefill_ns_rows * span.prefill_ns_columns]
    return StepTables(
        values[span.linear_ns : span.linear_ns + span.linear_ns_rows],
        values[span.sample_ns : span.sample_ns + span.sample_ns_rows],
        values[span.host_ns : span.host_ns + span.host_ns_rows],
        decode.reshape((span.decode_ns_rows, span.decode_ns_columns)),
        window.reshape((span.decode_window_ns_rows, span.decode_window_ns_columns)),
        prefill.reshape((span.prefill_ns_rows, span.prefill_ns_columns)),
        span.window_tokens,
        linear.reshape((span.stage_linear_ns_rows, span.stage_linear_ns_columns)),
        values[span.stage_attention : span.stage_attention + span.stage_attention_rows],
        values[span.shared_linear_ns : span.shared_linear_ns + span.shared_linear_ns_rows],
        longest.reshape((span.alone_ns_rows, span.alone_ns_columns)),
        values[span.draft_ns : span.draft_ns + span.draft_ns_rows],
        state.reshape((span.state_ns_rows, span.state_ns_columns)),
    )
