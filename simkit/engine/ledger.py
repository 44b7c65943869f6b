"""Where each request's time went, exactly.

Three running sums partition the time up to the end of the last dispatched step: the device waited for the host, it did
the decode share of a step, it did what prefill chunks added. A request's part is a difference of these sums between the
changes of its phase, so no step has to visit every request, and the parts sum to its latency to the nanosecond.
"""

from simkit.compiled import inlined
from simkit.engine.record import log_event
from simkit.engine.ring import ring_row
from simkit.engine.state import (
    ADMITTED,
    DECODE,
    DEVICE_FREE,
    IN_FLIGHT,
    OVER,
    PREEMPTED_NOW,
    PREFILL,
    QUEUED,
    REDO,
    REDONE_TOKENS,
    RUNNING_COUNT,
    SUM_DECODE,
    SUM_EXTRA,
    SUM_HOST,
    Replica,
)

# numbers of simkit.metrics.result.EventKind
ARRIVED_EVENT, SCHEDULED_EVENT, FIRST_TOKEN_EVENT, PREEMPTED_EVENT, FINISHED_EVENT = range(5)


@inlined
def close_phase(r: Replica, request: int, host: int, decode: int, extra: int) -> None:
    """Book what went by since the phase began, up to the moment at which the running sums have the values given."""
    ledger = r.ledger
    waited = host - ledger[request].since_host
    decoded = decode - ledger[request].since_decode
    added = extra - ledger[request].since_extra
    skipped = ledger[request].skipped
    ledger[request].host += waited
    if r.progress[request].phase == PREFILL:
        ledger[request].prefill += decoded + added - skipped
        ledger[request].stalled += skipped
    else:
        ledger[request].decode += decoded - skipped
        ledger[request].stalled += added + skipped
    ledger[request].skipped = 0


@inlined
def open_phase(r: Replica, request: int, phase: int, host: int, decode: int, extra: int) -> None:
    """Begin a phase at the moment at which the running sums have the values given."""
    r.progress[request].phase = phase
    r.ledger[request].since_host = host
    r.ledger[request].since_decode = decode
    r.ledger[request].since_extra = extra


@inlined
def book_preemptions(r: Replica) -> None:
    """Close the phase of everyone whom the latest schedule() preempted: they last ran in the step dispatched before."""
    at = r.at
    for i in range(at[PREEMPTED_NOW]):
        request = r.record.victims[i]
        log_event(r, at[DEVICE_FREE], request, PREEMPTED_EVENT)
        if r.progress[request].phase == REDO:
            continue
        close_phase(r, request, at[SUM_HOST], at[SUM_DECODE], at[SUM_EXTRA])
        r.progress[request].phase = REDO
        r.ledger[request].redo_from = at[DEVICE_FREE]


@inlined
def book_admissions(r: Replica, start: int, booked: int) -> None:
    """Begin the prefill of everyone first admitted to the step that starts at `start`; the sums stand at `booked`.

    That is later where the step's first stage ran beside the last stage of the one before.
    """
    at = r.at
    for i in range(at[ADMITTED]):
        request = r.record.admitted[i]
        log_event(r, start, request, SCHEDULED_EVENT)
        if r.progress[request].phase == QUEUED:
            r.ledger[request].scheduled = start
            r.ledger[request].prefill += booked - start
            open_phase(r, request, PREFILL, at[SUM_HOST], at[SUM_DECODE], at[SUM_EXTRA])


@inlined
def book_step(r: Replica, row: int, decode: int, extra: int) -> int:
    """Book a step of `decode` + `extra` ns of device time; sums stand at its end. Returns its tokens.

    Requests whose prompt, or whose lost work, it completes change phase there; those left out are stalled by it.
    """
    tokens = 0
    for k in range(r.batches[row].length):
        entry = r.entries[row, k]
        tokens += int(entry.tokens)
        if r.progress[entry.request].phase != DECODE:
            _book_entry(r, entry.request, int(entry.tokens), int(entry.before), entry.samples > 0)
    if r.batches[row].length < r.at[RUNNING_COUNT]:
        _book_left_out(r, row, r.batches[row].step, decode, extra)
    return tokens


@inlined
def _book_entry(r: Replica, request: int, new: int, past: int, samples: bool) -> None:
    """Change the phase of a request that completes its prompt, or what it had lost, in the step that ends now."""
    at = r.at
    ledger = r.ledger[request]
    if r.progress[request].phase == PREFILL:
        if samples:
            close_phase(r, request, at[SUM_HOST], at[SUM_DECODE], at[SUM_EXTRA])
            open_phase(r, request, DECODE, at[SUM_HOST], at[SUM_DECODE], at[SUM_EXTRA])
    elif r.progress[request].phase == REDO:
        at[REDONE_TOKENS] += min(new, max(int(ledger.redo_until) - past, 0))
        if past + new >= ledger.redo_until:
            ledger.preempted += at[DEVICE_FREE] - ledger.redo_from
            ledger.redo_until = 0
            open_phase(r, request, DECODE if samples else PREFILL, at[SUM_HOST], at[SUM_DECODE], at[SUM_EXTRA])


@inlined
def _book_left_out(r: Replica, row: int, step: int, decode: int, extra: int) -> None:
    """Count the step as a stall for running requests that are not in it: the budget had run out."""
    k = 0
    for i in range(r.at[RUNNING_COUNT]):
        request = r.running[i]
        # the batch keeps the order of `running`
        if k < r.batches[row].length and r.entries[row, k].request == request:
            k += 1
            continue
        # in a batch on another stage: it is not left out
        if r.limits.stages > 1 and r.progress[request].computed >= r.progress[request].known:
            continue
        phase = r.progress[request].phase
        if phase == PREFILL:
            r.ledger[request].skipped += decode + extra
        elif phase == DECODE:
            r.ledger[request].skipped += decode
            r.ledger[request].skipped_step = step


@inlined
def book_finish(r: Replica, row: int, request: int) -> None:
    """Close the life of a request at the end of the batch in ring row `row`."""
    ledger = r.ledger
    batches = r.batches
    ledger[request].finish = batches[row].end
    if r.progress[request].phase == REDO:
        # preempted by a step after this one, which had been planned already: nothing was lost
        lost = batches[row].end - ledger[request].redo_from
        ledger[request].preempted += max(lost, 0)
        if lost < 0:
            _take_back(r, request, -lost)
    else:
        other = ring_row(r, 1)
        if r.limits.stages == 1 and r.at[IN_FLIGHT] > 1 and ledger[request].skipped_step == batches[other].step:
            # the step planned after this one left it out, but it was over by then
            ledger[request].skipped -= batches[other].decode
        close_phase(r, request, batches[row].sum_host, batches[row].sum_decode, batches[row].sum_extra)
    r.progress[request].phase = OVER
    log_event(r, batches[row].end, request, FINISHED_EVENT)


@inlined
def _take_back(r: Replica, request: int, booked: int) -> None:
    """Take back what was booked between a request's end and its preemption by a later batch of the pipeline."""
    ledger = r.ledger[request]
    stalled = min(booked, ledger.stalled)
    ledger.stalled -= stalled
    host = min(booked - stalled, ledger.host)
    ledger.host -= host
    decode = min(booked - stalled - host, ledger.decode)
    ledger.decode -= decode
    ledger.prefill -= booked - stalled - host - decode
