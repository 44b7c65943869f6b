"""One replica runs until it has answered somebody: the event that the rest of a fleet waits for."""

from simkit.by_address import by_address
from simkit.cluster.loops.lookahead import earliest_end
from simkit.compiled import compiled, inlined
from simkit.engine.loop import turn
from simkit.engine.prefix import block_key, cached_block, hit_in_groups
from simkit.engine.ring import ring_row
from simkit.engine.state import (
    FINISHED,
    FLUSH,
    I32,
    I64,
    IN_FLIGHT,
    NEVER,
    NEXT_ARRIVAL,
    NOW,
    ROWS,
    UNFINISHED,
    Replica,
)
from simkit.models.steptables import StepTables

# why run_until_end() returned: nothing left to do; its clock passed the limit; requests ended; so many turns are over
IDLE, PAUSED, ENDED, MORE = range(4)

# places in its `out`: how many ended, when (ns), and a time before which nobody ends
COUNT, END, NEXT = range(3)


@compiled
def run_until_end(
    r: Replica, tables: StepTables, until_ns: int, turns: int, least_step_ns: int, ended: I32, out: I64
) -> int:
    """Run every turn that begins before `until_ns`, up to the first that ends requests; says why it stopped.

    `ended` [max_running] gets the rows of those that the last turn ended, `out` [3] what stands above.
    """
    here, times = by_address(r), by_address(tables)
    at = here.at
    out[COUNT] = 0
    for _ in range(turns):
        if at[UNFINISHED] == 0 and at[IN_FLIGHT] == 0 and at[FLUSH] == 0:
            if at[NEXT_ARRIVAL] == at[ROWS]:
                out[NEXT] = NEVER
                return IDLE
            at[NOW] = max(at[NOW], here.requests[at[NEXT_ARRIVAL]].arrival_ns)
        if at[NOW] >= until_ns:
            out[NEXT] = earliest_end(here, least_step_ns)
            return PAUSED
        before = at[UNFINISHED] - at[NEXT_ARRIVAL]
        turn(here, times)
        # cancellations count here too, but end nobody whom the list would find
        if at[UNFINISHED] - at[NEXT_ARRIVAL] != before and list_ended(here, ended, out) > 0:
            out[NEXT] = earliest_end(here, least_step_ns)
            return ENDED
    return MORE


@inlined
def list_ended(r: Replica, ended: I32, out: I64) -> int:
    """List whom the step that was committed last has ended, unless it was listed before; returns how many."""
    if r.batches[ring_row(r, -1)].end <= out[END]:
        return 0
    return list_committed(r, ended, out)


@inlined
def list_committed(r: Replica, ended: I32, out: I64) -> int:
    """List whom the step that was committed last has ended; returns how many."""
    row = ring_row(r, -1)
    end = r.batches[row].end
    count = 0
    for k in range(r.batches[row].length):
        request = r.entries[row, k].request
        if answered_at(r, request, end):
            ended[count] = request
            count += 1
    if count > 0:
        out[COUNT] = count
        out[END] = end
    return count


@inlined
def answered_at(r: Replica, request: int, end: int) -> bool:
    """Whether a request's last token was out then. Its ledger says so too, but that is not in the core's cache."""
    progress = r.progress[request]
    return bool(progress.status == FINISHED and progress.last_token == end)


@compiled
def cached_blocks(r: Replica, row: int, blocks: int) -> int:
    """How many of the first `blocks` blocks of the request in a row, which need not have arrived, are cached now."""
    if r.limits.window_groups > 0:
        return hit_in_groups(r, row, blocks * r.limits.block_size)[0]
    for index in range(blocks):
        if cached_block(r.pool, block_key(r, row, index)) == 0:
            return index
    return blocks
