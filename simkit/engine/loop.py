"""The whole simulation: schedule, time, commit.

With asynchronous scheduling a step is planned while the one before it runs (vLLM EngineCore.step_with_batch_queue);
without, after its output is known; a pipeline has a batch for each of its stages. All are this loop, with so many
batches in flight.
"""

from simkit.by_address import by_address
from simkit.compiled import compiled, inlined
from simkit.engine.actions import open_batch, seal_batch
from simkit.engine.clock import device_ns, round_ns
from simkit.engine.commit import cancel, commit
from simkit.engine.ledger import ARRIVED_EVENT, book_admissions, book_preemptions, book_step
from simkit.engine.record import log_event, log_step
from simkit.engine.ring import ring_row
from simkit.engine.stages import leaves_first_stage, pass_stages
from simkit.engine.state import (
    BUSY,
    COMPUTED_TOKENS,
    COPIED_BLOCKS,
    DEVICE_FREE,
    DISTINCT_KEYS,
    FLUSH,
    FREE_BLOCKS,
    IN_FLIGHT,
    NEXT_ABORT,
    NEXT_ARRIVAL,
    NOW,
    OLDEST,
    ROWS,
    RUNNING_COUNT,
    STEPS,
    SUM_DECODE,
    SUM_EXTRA,
    SUM_HOST,
    UNFINISHED,
    WAITING,
    WAITING_COUNT,
    Replica,
)
from simkit.engine.vllm_v1 import schedule
from simkit.engine.waiting import enqueue
from simkit.models.steptables import StepTables

# why advance() returned
IDLE, PAUSED, MORE = range(3)


@compiled
def advance(r: Replica, tables: StepTables, until_ns: int, iterations: int) -> int:
    """Run the replica until nothing is left to do (IDLE) or its clock passes `until_ns` (PAUSED).

    After `iterations` turns it returns in any case (MORE), so that its caller can look up.
    """
    here, times = by_address(r), by_address(tables)
    at = here.at
    for _ in range(iterations):
        if at[UNFINISHED] == 0 and at[IN_FLIGHT] == 0 and at[FLUSH] == 0:
            if at[NEXT_ARRIVAL] == at[ROWS]:
                return IDLE
            at[NOW] = max(at[NOW], here.requests[at[NEXT_ARRIVAL]].arrival_ns)
        if at[NOW] > until_ns:
            return PAUSED
        turn(here, times)
    return MORE


@compiled
def iterate(r: Replica, tables: StepTables) -> None:
    """One turn, for callers that look at the replica after each."""
    turn(by_address(r), by_address(tables))


@inlined
def turn(r: Replica, tables: StepTables) -> None:
    """One turn of the engine: take what arrived, plan a step and start it, then wait for the oldest one in flight."""
    at = r.at
    receive(r)
    if at[UNFINISHED] > 0 or at[FLUSH] == 1:
        at[FLUSH] = 0
        row = open_batch(r)
        schedule(r, row)
        seal_batch(r, row)
        host = round_ns(tables.host_ns[r.batches[row].length])
        device, decode = device_ns(r, tables, row)
        # copies wait for no kernel and no kernel starts before them (vLLM 0.6 worker.py, execute_worker)
        device += at[COPIED_BLOCKS] * r.limits.swap_block_ns
        if r.limits.stages > 1:
            start = max(at[NOW] + host, leaves_first_stage(r))
            end = pass_stages(r, tables, row, start, device)
        else:
            start = max(at[NOW] + host, at[DEVICE_FREE])
            end = start + device
        dispatch(r, row, start, end, device, decode)
        at[NOW] += host
        if r.batches[row].length > 0 and at[IN_FLIGHT] < r.limits.pipeline_depth:
            return
    if at[IN_FLIGHT] == 0:
        return
    row = at[OLDEST]
    at[NOW] = max(at[NOW], r.batches[row].end)
    commit(r, row)
    at[OLDEST] = ring_row(r, 1)
    at[IN_FLIGHT] -= 1


@inlined
def receive(r: Replica) -> None:
    """Let requests that have arrived by now wait, and drop those that were cancelled."""
    at = r.at
    requests = r.requests
    while at[NEXT_ARRIVAL] < at[ROWS] and requests[at[NEXT_ARRIVAL]].arrival_ns <= at[NOW]:
        request = at[NEXT_ARRIVAL]
        at[NEXT_ARRIVAL] += 1
        at[UNFINISHED] += 1
        r.progress[request].status = WAITING
        r.progress[request].known = requests[request].prompt
        r.progress[request].prompt = requests[request].prompt
        r.progress[request].asked_until = requests[request].prompt + requests[request].max_tokens
        r.progress[request].ends_at = requests[request].prompt + requests[request].output
        log_event(r, requests[request].arrival_ns, request, ARRIVED_EVENT)
        enqueue(r, request, False)
    while at[NEXT_ABORT] < len(r.aborts) and r.aborts[at[NEXT_ABORT]].time_ns <= at[NOW]:
        cancel(r, r.aborts[at[NEXT_ABORT]].request)
        at[NEXT_ABORT] += 1


@inlined
def dispatch(r: Replica, row: int, start: int, end: int, device: int, decode: int) -> None:
    """Start a planned batch: it enters the device at `start` ns and leaves it at `end`, later than the one before.

    `device` ns are spent on it, all stages together, `decode` of these without the batch's prefill chunks. Of a
    pipeline's time, which its batches share, each has what it adds to the end of the one before.
    """
    at = r.at
    batch = r.batches[row]
    book_preemptions(r)
    begin = max(at[NOW], at[DEVICE_FREE])
    if device > end - at[DEVICE_FREE]:
        decode = int(decode * ((end - at[DEVICE_FREE]) / device))
        device = end - at[DEVICE_FREE]
    batch.start = start
    batch.end = end
    batch.decode = decode
    batch.step = at[STEPS] + 1
    batch.free = r.pool.counts[FREE_BLOCKS]
    batch.running = at[RUNNING_COUNT]
    batch.waiting = at[WAITING_COUNT]
    batch.distinct = r.pool.counts[DISTINCT_KEYS]
    at[SUM_HOST] += end - device - at[DEVICE_FREE]
    book_admissions(r, start, end - device)
    at[SUM_DECODE] += decode
    at[SUM_EXTRA] += device - decode
    at[DEVICE_FREE] = end
    batch.sum_host = at[SUM_HOST]
    batch.sum_decode = at[SUM_DECODE]
    batch.sum_extra = at[SUM_EXTRA]
    tokens = book_step(r, row, decode, device - decode)
    if tokens > 0:
        at[STEPS] += 1
        at[COMPUTED_TOKENS] += tokens
        r.record.batch_requests[batch.length] += 1
        r.record.batch_tokens[tokens] += 1
    log_step(r, begin, end, device, tokens)
    at[BUSY] += device
    at[IN_FLIGHT] += 1
