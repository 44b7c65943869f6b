"""Where each request's time went, exactly.

Three running sums partition the time up to the end of the last dispatched step: the device waited for the host, it did
the decode share of a step, it did what prefill chunks added. A request's part is a difference of these sums between the
changes of its phase, so no step has to visit every request, and the parts sum to its latency to the nanosecond.
"""

from simkit.compiled import compiled
from simkit.engine.record import log_event
from simkit.engine.state import (
    ADMITTED,
    DECODE,
    DEVICE_FREE,
    IN_FLIGHT,
    OLDEST,
    OVER,
    PREEMPTED_NOW,
    PREFILL,
    QUEUED,
    REDO,
    RUNNING_COUNT,
    SUM_DECODE,
    SUM_EXTRA,
    SUM_HOST,
    Replica,
)

# numbers of simkit.metrics.result.EventKind
ARRIVED_EVENT, SCHEDULED_EVENT, FIRST_TOKEN_EVENT, PREEMPTED_EVENT, FINISHED_EVENT = range(5)


@compiled
def close_phase(r: Replica, request: int, host: int, decode: int, extra: int) -> None:
    """Book what went by since the phase began, up to the moment at which the running sums have the values given."""
    ledger = r.ledger
    waited = host - ledger.since[request, 0]
    decoded = decode - ledger.since[request, 1]
    added = extra - ledger.since[request, 2]
    skipped = ledger.skipped[request]
    ledger.host[request] += waited
    if ledger.phase[request] == PREFILL:
        ledger.prefill[request] += decoded + added - skipped
        ledger.stalled[request] += skipped
    else:
        ledger.decode[request] += decoded - skipped
        ledger.stalled[request] += added + skipped
    ledger.skipped[request] = 0


@compiled
def open_phase(r: Replica, request: int, phase: int, host: int, decode: int, extra: int) -> None:
    """Begin a phase at the moment at which the running sums have the values given."""
    r.ledger.phase[request] = phase
    r.ledger.since[request, 0] = host
    r.ledger.since[request, 1] = decode
    r.ledger.since[request, 2] = extra


@compiled
def book_preemptions(r: Replica) -> None:
    """Close the phase of everyone whom the latest schedule() preempted: they last ran in the step dispatched before."""
    at = r.at
    for i in range(at[PREEMPTED_NOW]):
        request = r.record.victims[i]
        log_event(r, at[DEVICE_FREE], request, PREEMPTED_EVENT)
        if r.ledger.phase[request] == REDO:
            continue
        close_phase(r, request, at[SUM_HOST], at[SUM_DECODE], at[SUM_EXTRA])
        r.ledger.phase[request] = REDO
        r.ledger.redo_from[request] = at[DEVICE_FREE]


@compiled
def book_admissions(r: Replica, start: int) -> None:
    """Begin the prefill of everyone admitted for the first time to the step that starts now; sums stand at its start."""
    at = r.at
    for i in range(at[ADMITTED]):
        request = r.record.admitted[i]
        log_event(r, start, request, SCHEDULED_EVENT)
        if r.ledger.phase[request] == QUEUED:
            r.ledger.scheduled[request] = start
            open_phase(r, request, PREFILL, at[SUM_HOST], at[SUM_DECODE], at[SUM_EXTRA])


@compiled
def book_step(r: Replica, row: int, decode: int, extra: int) -> None:
    """Book a step of `decode` + `extra` ns of device time; sums stand at its end.

    Requests whose prompt, or whose lost work, it completes change phase there; those left out are stalled by it.
    """
    at = r.at
    ledger = r.ledger
    batches = r.batches
    step = batches.step[row]
    for k in range(batches.size[row]):
        request = batches.request[row, k]
        phase = ledger.phase[request]
        if phase == PREFILL:
            if batches.samples[row, k]:
                close_phase(r, request, at[SUM_HOST], at[SUM_DECODE], at[SUM_EXTRA])
                open_phase(r, request, DECODE, at[SUM_HOST], at[SUM_DECODE], at[SUM_EXTRA])
        elif phase == REDO and r.progress.computed[request] >= ledger.redo_until[request]:
            ledger.preempted[request] += at[DEVICE_FREE] - ledger.redo_from[request]
            ledger.redo_until[request] = 0
            begins = DECODE if batches.samples[row, k] else PREFILL
            open_phase(r, request, begins, at[SUM_HOST], at[SUM_DECODE], at[SUM_EXTRA])
    if batches.size[row] < at[RUNNING_COUNT]:
        _book_left_out(r, row, step, decode, extra)


@compiled
def _book_left_out(r: Replica, row: int, step: int, decode: int, extra: int) -> None:
    """Count the step as a stall for running requests that are not in it: the budget had run out."""
    k = 0
    for i in range(r.at[RUNNING_COUNT]):
        request = r.running[i]
        # the batch keeps the order of `running`
        if k < r.batches.size[row] and r.batches.request[row, k] == request:
            k += 1
            continue
        phase = r.ledger.phase[request]
        if phase == PREFILL:
            r.ledger.skipped[request] += decode + extra
        elif phase == DECODE:
            r.ledger.skipped[request] += decode
            r.ledger.skipped_step[request] = step


@compiled
def book_finish(r: Replica, row: int, request: int) -> None:
    """Close the life of a request at the end of the batch in ring row `row`."""
    ledger = r.ledger
    batches = r.batches
    ledger.finish[request] = batches.end[row]
    if ledger.phase[request] == REDO:
        # preempted by the step after this one, which had been planned already: nothing was lost
        ledger.preempted[request] += batches.end[row] - ledger.redo_from[request]
    else:
        other = (r.at[OLDEST] + 1) % 2
        if r.at[IN_FLIGHT] > 1 and ledger.skipped_step[request] == batches.step[other]:
            # the step planned after this one left it out, but it was over by then
            ledger.skipped[request] -= batches.decode[other]
        close_phase(r, request, batches.sums[row, 0], batches.sums[row, 1], batches.sums[row, 2])
    ledger.phase[request] = OVER
    log_event(r, batches.end[row], request, FINISHED_EVENT)
