"""A step's output: a token for each request that sampled, more with accepted drafts; who has all of theirs ends."""

from simkit.compiled import inlined
from simkit.engine.blocks import release
from simkit.engine.drafts import accepted_drafts
from simkit.engine.ledger import FIRST_TOKEN_EVENT, book_finish
from simkit.engine.ordering import serve_output
from simkit.engine.prefix import register_full_blocks
from simkit.engine.record import bin_of, log_event
from simkit.engine.ring import asynchronous
from simkit.engine.state import (
    ABORTED,
    FAIR,
    FINISHED,
    FLUSH,
    ITL_MAX,
    ITL_SUM,
    LAST_BIN,
    LAST_GAP,
    OVER,
    PENDING,
    RUNNING,
    RUNNING_COUNT,
    UNFINISHED,
    Replica,
)
from simkit.engine.waiting import leave_queue


@inlined
def commit(r: Replica, row: int) -> None:
    """Deliver the tokens of the batch in ring row `row`, in batch order, and free who is finished at once."""
    limits = r.limits
    now = r.batches[row].end
    left = False
    for k in range(r.batches[row].length):
        request = r.entries[row, k].request
        progress = r.progress[request]
        status = progress.status
        if limits.window_groups > 0:
            progress.unsettled -= r.entries[row, k].tokens
        # over since it was scheduled: by EOS in the step before, or cancelled; the token is wasted
        samples = r.entries[row, k].samples
        if samples == 0 or status in (FINISHED, ABORTED):
            continue
        if samples == 1:
            over = _deliver_next(r, now, request)
        else:
            over = _deliver_all(r, now, request, _accepted(r, request, int(samples) - 1) + 1)
        settles = (samples > 1 and limits.registers_accepted) or limits.hashes_next_token
        if status == RUNNING and (asynchronous(r) or settles):
            if asynchronous(r):
                progress.placeholders -= samples
            if limits.prefix_caching:
                # drafts accepted beyond a request's end are no tokens of it
                register_full_blocks(r, request, min(progress.computed - progress.placeholders, progress.known - 1))
        if over:
            book_finish(r, row, request)
            end(r, request, FINISHED)
            left = left or status == RUNNING
    if left:
        _drop_ended(r)


@inlined
def _accepted(r: Replica, request: int, drafted: int) -> int:
    """How many of the drafts that were checked are accepted; what was computed for the others is void."""
    progress = r.progress[request]
    accepted = 0
    if progress.empty == 0:
        accepted = accepted_drafts(r.limits, int(request), int(progress.known), drafted)
    progress.empty = 0
    # who was preempted meanwhile has lost all that was computed (vLLM Scheduler.update_from_output)
    if progress.status == RUNNING:
        progress.computed -= drafted - accepted
    return accepted


@inlined
def _deliver_all(r: Replica, now: int, request: int, tokens: int) -> bool:
    """Deliver a step's tokens of a request, up to its last; whether that was among them."""
    over = False
    while tokens > 0 and not over:
        over = _deliver_next(r, now, request)
        tokens -= 1
    return over


@inlined
def _deliver_next(r: Replica, now: int, request: int) -> bool:
    """Deliver a request's next token; whether it was its last."""
    progress = r.progress[request]
    progress.known += 1
    _deliver(r, now, request, progress.known == progress.prompt + 1)
    if r.limits.ordering == FAIR:
        serve_output(r, request)
    return bool(progress.known >= progress.ends_at or progress.known >= r.limits.max_model_len)


@inlined
def _deliver(r: Replica, now: int, request: int, first: bool) -> None:
    """Note the time of a token."""
    at = r.at
    if first:
        r.ledger[request].first_token = now
        log_event(r, now, request, FIRST_TOKEN_EVENT)
    else:
        gap = now - r.progress[request].last_token
        if gap != at[LAST_GAP]:
            at[LAST_GAP] = gap
            at[LAST_BIN] = bin_of(gap)
            at[ITL_MAX] = max(at[ITL_MAX], gap)
        r.record.itl[at[LAST_BIN]] += 1
        at[ITL_SUM] += gap
    r.progress[request].last_token = now


@inlined
def end(r: Replica, request: int, status: int) -> None:
    """Release what a request holds; it stays in `running` until _drop_ended, or lazily in the queue."""
    if r.progress[request].status == RUNNING:
        release(r.limits, r.pool, r.progress, request)
    else:
        leave_queue(r, request)
    r.progress[request].status = status
    r.at[UNFINISHED] -= 1
    if asynchronous(r):
        r.at[FLUSH] = 1


@inlined
def _drop_ended(r: Replica) -> None:
    """Close the gaps in `running`."""
    kept = 0
    for i in range(r.at[RUNNING_COUNT]):
        request = r.running[i]
        if r.progress[request].status == RUNNING:
            r.running[kept] = request
            kept += 1
    r.at[RUNNING_COUNT] = kept


@inlined
def cancel(r: Replica, request: int) -> None:
    """Drop a request that its client gave up: its blocks are free at once, a token in flight is lost."""
    status = r.progress[request].status
    if status in (PENDING, FINISHED, ABORTED):
        return
    end(r, request, ABORTED)
    r.progress[request].phase = OVER
    if status == RUNNING:
        _drop_ended(r)
