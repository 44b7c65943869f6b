"""Engines that share their experts take every step together: it lasts as long as the slowest of them needs.

In each layer with experts tokens go to all engines' GPUs and back, so nobody is through before the last has come (vLLM,
DPEngineCoreProc.run_busy_loop). Who has nothing to compute runs an empty step along; when nobody has, all go on with
steps of a token each until they next agree that all may rest, and who comes in between waits for the end of one.

An engine's own part of a step goes by its own tokens, the experts' by the mean of all engines': each GPU's experts
compute what is sent to them from everywhere. A slow engine takes so many times as long for both.

Arrays are those of a Replica with one more axis in front, of the d engines, which are equal.
"""

from simkit.cluster.loops.lookahead import earliest_end
from simkit.cluster.loops.until_end import COUNT, END, ENDED, IDLE, MORE, NEXT, PAUSED, list_committed
from simkit.compiled import compiled, inlined
from simkit.engine.actions import open_batch, seal_batch
from simkit.engine.clock import device_ns, round_ns
from simkit.engine.commit import commit
from simkit.engine.loop import dispatch, receive
from simkit.engine.record import log_step
from simkit.engine.ring import ring_row
from simkit.engine.state import (
    BUSY,
    DEVICE_FREE,
    F64,
    FLUSH,
    I32,
    I64,
    IN_FLIGHT,
    NEVER,
    NEXT_ARRIVAL,
    NOW,
    OLDEST,
    ROWS,
    UNFINISHED,
    Pool,
    Recorder,
    Replica,
)
from simkit.engine.vllm_v1 import schedule
from simkit.models.steptables import StepTables

# engines agree whether anybody has work left after so many steps (vLLM, _has_global_unfinished_reqs)
STEPS_TO_AGREE = 32

# columns of `planned` [d, 3]: the batch's row, and ns that the engine's own part of it takes, all and its decodes alone
ROW, OWN, DECODE = range(3)


@compiled
def run_together(
    engines: Replica,
    tables: StepTables,
    slow: F64,
    least_step_ns: I64,
    until_ns: int,
    turns: int,
    steps: I64,
    planned: I64,
    ended: I32,
    out: I64,
) -> int:
    """simkit.cluster.loops.until_end.run_until_end of d engines that share experts; says why it stopped.

    `slow` [d] is how many times as long each engine's steps take, `least_step_ns` [d] its shortest, `steps` [1] how
    many they have taken since all rested; one alone has nobody to agree with. `ended`
    [d, max_running] and `out` [d, 3] get of each what is said there, but `out[0]` has END and NEXT of all.
    """
    count = len(engines.at)
    for i in range(count):
        out[i, COUNT] = 0
    for _ in range(turns):
        now = 0
        busy = False
        arrival = NEVER
        slowest = 0.0
        for i in range(count):
            at = engines.at[i]
            slowest = max(slowest, slow[i])
            now = max(now, at[NOW])
            busy = busy or at[UNFINISHED] > 0 or at[IN_FLIGHT] > 0 or at[FLUSH] == 1
            if at[NEXT_ARRIVAL] < at[ROWS]:
                arrival = min(arrival, engines.requests[i, at[NEXT_ARRIVAL]].arrival_ns)
        if not busy:
            if arrival == NEVER:
                out[0, NEXT] = NEVER
                return IDLE
            if arrival > now:
                empty_ns = round_ns(tables.linear_ns[1] * slowest) if count > 1 else 0
                now = _wait_for(engines, arrival, now, empty_ns, steps)
                for i in range(count):
                    engines.at[i, NOW] = now
        if now >= until_ns:
            early = NEVER
            for i in range(count):
                early = min(early, earliest_end(engine_at(engines, i), least_step_ns[i]))
            out[0, NEXT] = early
            return PAUSED
        if _turn_together(engines, tables, slow, now, steps, planned, ended, out) > 0:
            return ENDED
    return MORE


@inlined
def _wait_for(engines: Replica, arrival: int, now: int, empty_ns: int, steps: I64) -> int:
    """When engines hear of an arrival after `now`, since when nobody has work: after empty steps, unless all rest."""
    if empty_ns > 0:
        left = int(-steps[0] % STEPS_TO_AGREE)
        empty = min((arrival - now + empty_ns - 1) // empty_ns, left)
        end = now + empty * empty_ns
        for i in range(len(engines.at)):
            # a token's pass through all layers (vLLM, execute_dummy_batch): the device is busy
            engines.at[i, BUSY] += end - now
            log_step(engine_at(engines, i), now, end, end - now, 0)
        if end >= arrival:
            steps[0] += empty
            return end
    steps[0] = 0
    return arrival


@inlined
def _turn_together(
    engines: Replica, tables: StepTables, slow: F64, now: int, steps: I64, planned: I64, ended: I32, out: I64
) -> int:
    """simkit.engine.loop.turn of several engines: all plan, then the step is as long as the longest.

    Returns how many requests it has ended.
    """
    count = len(engines.at)
    works = False
    computes = False
    host = 0
    free = 0
    tokens = 0
    for i in range(count):
        r = engine_at(engines, i)
        r.at[NOW] = now
        receive(r)
        row = open_batch(r)
        planned[i, ROW] = row
        planned[i, OWN] = 0
        planned[i, DECODE] = 0
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
            planned[i, OWN] = own
            planned[i, DECODE] = decode
            host = max(host, round_ns(slow[i] * tables.host_ns[r.batches[row].length]))
            works = True
            computes = computes or r.batches[row].length > 0
    steps[0] += 1 if computes else 0
    experts = 0
    if len(tables.shared_linear_ns) > 0:
        experts = round_ns(tables.shared_linear_ns[(tokens + count - 1) // count])
    device = 0
    for i in range(count):
        whole = planned[i, OWN] + experts
        if slow[i] != 1.0:
            whole = round_ns(slow[i] * whole)
            planned[i, DECODE] = round_ns(slow[i] * planned[i, DECODE])
        device = max(device, whole)
    start = max(now + host, free)
    in_flight = engines.at[0, IN_FLIGHT] + (1 if works else 0)
    waits = in_flight > 0 and not (computes and in_flight < engines.limits.pipeline_depth)
    over = 0
    for i in range(count):
        r = engine_at(engines, i)
        at = r.at
        if works:
            # what the others take longer stalls those who decode, as a prompt in their own batch does
            dispatch(r, planned[i, ROW], start, start + device, device, min(planned[i, DECODE], device))
            at[NOW] += host
        if waits:
            row = at[OLDEST]
            at[NOW] = max(at[NOW], r.batches[row].end)
            before = at[UNFINISHED]
            commit(r, row)
            at[OLDEST] = ring_row(r, 1)
            at[IN_FLIGHT] -= 1
            if at[UNFINISHED] < before:
                over += list_committed(r, ended[i], out[i])
                out[0, END] = r.batches[row].end
    return over


@inlined
def engine_at(engines: Replica, i: int) -> Replica:
    """Engine i as a replica by itself: the same arrays."""
    pool, record = engines.pool, engines.record
    return Replica(
        engines.limits,
        engines.requests[i],
        engines.content_ids,
        engines.aborts[i],
        engines.progress[i],
        engines.ledger[i],
        Pool(pool.blocks[i], pool.places[i], pool.table[i], pool.free_slots[i], pool.counts[i]),
        engines.entries[i],
        engines.batches[i],
        Recorder(
            record.itl[i],
            record.batch_requests[i],
            record.batch_tokens[i],
            record.series[i],
            record.events[i],
            record.admitted[i],
            record.victims[i],
        ),
        engines.running[i],
        engines.waiting[i],
        engines.tenants[i],
        engines.at[i],
    )
