"""Engines that share their experts take every step together: it lasts as long as the slowest of them needs.

In each layer with experts tokens go to all engines' GPUs and back, so nobody is through before the last has come (vLLM,
DPEngineCoreProc.run_busy_loop). Who has nothing to compute runs an empty step along; when nobody has, all rest. (vLLM's
engines rest a little later, when they next agree on it, every 32 steps.)

An engine's own part of a step goes by its own tokens, the experts' by the mean of all engines': each GPU's experts
compute what is sent to them from everywhere.
"""

from simkit.cluster.loops.routed import count_ended, give, pool_at, recorder_at, tables_at
from simkit.cluster.rack import Rack
from simkit.compiled import compiled, inlined
from simkit.engine.actions import open_batch, seal_batch
from simkit.engine.clock import device_ns, round_ns
from simkit.engine.commit import commit
from simkit.engine.loop import dispatch, receive
from simkit.engine.ring import ring_row
from simkit.engine.state import (
    DEVICE_FREE,
    FLUSH,
    I64,
    IN_FLIGHT,
    NEVER,
    NEXT_ARRIVAL,
    NOW,
    OLDEST,
    ROWS,
    UNFINISHED,
    Replica,
)
from simkit.engine.vllm_v1 import schedule

# why run_together() returned: nothing left to do; the clock has come to the limit; so many turns are over
IDLE, PAUSED, MORE = range(3)

# columns of its `planned` [engines, 2]
ROW, DECODE = range(2)


@compiled
def deliver(rack: Rack, i: int, request: int, now: int) -> None:
    """Send a request to a replica, which has room for it."""
    give(rack, i, request, now)


@compiled
def run_together(rack: Rack, first: int, last: int, until_ns: int, turns: int, planned: I64) -> int:
    """Run engines `first` to `last` of the rack through every turn that begins before `until_ns`; says why it stopped.

    Who was answered by then is counted out.
    """
    for i in range(first, last):
        counter = rack.counters[i]
        if counter.late > 0 and counter.late_ns <= until_ns:
            counter.requests -= counter.late
            counter.tokens -= counter.late_tokens
            counter.late = 0
    for _ in range(turns):
        now = 0
        busy = False
        arrival = NEVER
        for i in range(first, last):
            at = rack.at[i]
            now = max(now, at[NOW])
            busy = busy or at[UNFINISHED] > 0 or at[IN_FLIGHT] > 0 or at[FLUSH] == 1
            if at[NEXT_ARRIVAL] < at[ROWS]:
                arrival = min(arrival, rack.requests[i, at[NEXT_ARRIVAL]].arrival_ns)
        if not busy:
            if arrival == NEVER:
                return IDLE
            now = max(now, arrival)
        if now >= until_ns:
            return PAUSED
        _turn_together(rack, first, last, now, until_ns, planned)
    return MORE


@inlined
def _turn_together(rack: Rack, first: int, last: int, now: int, until_ns: int, planned: I64) -> None:
    """simkit.engine.loop.turn of several engines: all plan, then the step is as long as the longest."""
    works = False
    computes = False
    host = 0
    device = 0
    free = 0
    tokens = 0
    for i in range(first, last):
        r = Replica(
            rack.limits[i],
            rack.requests[i],
            rack.content_ids[: rack.shape[i].content_ids],
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
        tables = tables_at(rack, rack.shape[i].tables)
        r.at[NOW] = now
        receive(r)
        row = open_batch(r)
        planned[i - first, ROW] = row
        planned[i - first, DECODE] = 0
        free = max(free, r.at[DEVICE_FREE])
        if r.at[UNFINISHED] > 0 or r.at[FLUSH] == 1:
            r.at[FLUSH] = 0
            schedule(r, row)
            seal_batch(r, row)
            own, decode = device_ns(r, tables, row)
            mine = 0
            for k in range(r.batches[row].length):
                mine += int(r.entries[row, k].tokens)
            tokens += mine
            if len(tables.shared_linear_ns) > 0:
                own -= round_ns(tables.shared_linear_ns[mine])
            planned[i - first, DECODE] = decode
            device = max(device, own)
            host = max(host, round_ns(tables.host_ns[r.batches[row].length]))
            works = True
            computes = computes or r.batches[row].length > 0
    tables = tables_at(rack, rack.shape[first].tables)
    if len(tables.shared_linear_ns) > 0:
        device += round_ns(tables.shared_linear_ns[(tokens + last - first - 1) // (last - first)])
    start = max(now + host, free)
    in_flight = rack.at[first, IN_FLIGHT] + (1 if works else 0)
    waits = in_flight > 0 and not (computes and in_flight < rack.limits[first].pipeline_depth)
    for i in range(first, last):
        r = Replica(
            rack.limits[i],
            rack.requests[i],
            rack.content_ids[: rack.shape[i].content_ids],
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
        at = r.at
        if works:
            # what the others take longer stalls those who decode, as a prompt in their own batch does
            dispatch(r, planned[i - first, ROW], start, start + device, device, min(planned[i - first, DECODE], device))
            at[NOW] += host
        if waits:
            row = at[OLDEST]
            at[NOW] = max(at[NOW], r.batches[row].end)
            before = at[UNFINISHED]
            commit(r, row)
            at[OLDEST] = ring_row(r, 1)
            at[IN_FLIGHT] -= 1
            if at[UNFINISHED] < before:
                count_ended(rack, r, i, until_ns, before - at[UNFINISHED])
