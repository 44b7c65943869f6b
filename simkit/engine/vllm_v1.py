"""vLLM V1's discipline: which requests get how many tokens in the next step.

Rules and their order are those of vLLM 0.32's Scheduler.schedule(); switches in Limits give older versions back. There
is no prefill phase and no decode phase: a step gives each request some of the tokens it is due.
"""

from simkit.compiled import inlined
from simkit.engine.blocks import hold_cached, hold_new, release, take_slot
from simkit.engine.prefix import block_key, cached_block, longest_hit, register_full_blocks
from simkit.engine.state import (
    ADMITTED,
    FREE_BLOCKS,
    I32,
    IN_FLIGHT,
    OLDEST,
    PREEMPTED,
    PREEMPTED_NOW,
    RUNNING,
    RUNNING_COUNT,
    WAITING,
    WAITING_COUNT,
    Replica,
)
from simkit.engine.waiting import dequeue, enqueue, head, more_urgent


@inlined
def schedule(r: Replica) -> int:
    """Fill the next batch of the ring with running requests, then, if nobody was preempted, with waiting ones.

    Returns the batch's row in `r.batches`. Tokens scheduled count as computed from here on, before they are executed.
    """
    row = int((r.at[OLDEST] + r.at[IN_FLIGHT]) % 2)
    r.batches[row].length = 0
    r.at[ADMITTED] = 0
    r.at[PREEMPTED_NOW] = 0
    threshold = _long_prefill_cap(r)
    budget = _schedule_running(r, row, threshold, r.limits.max_num_batched_tokens)
    # a step that preempted admits nobody (vLLM scheduler, waiting loop)
    if r.at[PREEMPTED_NOW] == 0:
        _schedule_waiting(r, row, threshold, budget)
    _advance_computed(r, row)
    return row


@inlined
def _long_prefill_cap(r: Replica) -> int:
    """The most tokens one request may get in this step; 0: no cap."""
    alive = r.at[RUNNING_COUNT] + r.at[WAITING_COUNT]
    threshold = r.limits.long_prefill_token_threshold
    if r.limits.lone_request_uncapped and alive <= 1:
        threshold = 0
    if r.limits.adaptive_long_prefill and alive > 0:
        threshold = max(threshold, r.limits.max_num_batched_tokens // alive)
    return threshold


@inlined
def _schedule_running(r: Replica, row: int, threshold: int, budget: int) -> int:
    """Give running requests, in order of admission, what they are due; returns the budget left.

    Decodes do not go before prefill chunks: a running prefill takes the whole remaining budget.
    """
    at = r.at
    i = 0
    while i < at[RUNNING_COUNT] and budget > 0:
        request = r.running[i]
        progress = r.progress[request]
        computed = progress.computed
        placeholders = progress.placeholders
        # asynchronous scheduling foresees the end by length, not by EOS
        if placeholders > 0 and computed + 2 - placeholders >= _last_token(r, request):
            i += 1
            continue
        due = progress.known + placeholders - computed
        if 0 < threshold < due:
            due = threshold
        due = min(due, budget, r.limits.max_model_len - computed - 1)
        if due <= 0:
            i += 1
            continue
        while not _grow(r, request, computed + due):
            victim = _choose_victim(r)
            refund, in_batch = _preempt(r, row, victim)
            budget += refund
            if in_batch:
                i -= 1
            if victim == request:
                return budget
        _add_to_batch(r, row, request, due, computed)
        budget -= due
        i += 1
    return budget


@inlined
def _last_token(r: Replica, request: int) -> int:
    """Tokens of a request when it has produced all that it asked for."""
    return int(r.requests[request].prompt + r.requests[request].max_tokens)


@inlined
def _grow(r: Replica, request: int, tokens: int) -> bool:
    """Get a running request the blocks it needs for `tokens` tokens; False, and nothing done, if they are not there."""
    size = r.limits.block_size
    held = r.progress[request].held
    if tokens > held * size:
        new = (min(tokens, r.limits.max_model_len) + size - 1) // size - held
        if new > r.pool.counts[FREE_BLOCKS]:
            return False
        hold_new(r.pool, r.progress, request, new)
    if r.limits.prefix_caching:
        # registered before it is executed, so that later requests of this very step hit (vLLM allocate_slots)
        register_full_blocks(r, request, min(tokens, r.progress[request].known))
    return True


@inlined
def _choose_victim(r: Replica) -> int:
    """Whom to preempt: the latest admitted, or by priority the least urgent of all running."""
    victim = int(r.running[r.at[RUNNING_COUNT] - 1])
    if r.limits.priority_policy:
        for i in range(r.at[RUNNING_COUNT]):
            if more_urgent(r, victim, r.running[i]):
                victim = int(r.running[i])
    return victim


@inlined
def _preempt(r: Replica, row: int, victim: int) -> tuple[int, bool]:
    """Take a running request's blocks; it will compute everything again, outputs included, and keeps its outputs.

    Returns the tokens it gives back to this step's budget, and whether it was in the batch already.
    """
    r.at[RUNNING_COUNT] -= 1
    _close_up(r.running, r.at[RUNNING_COUNT], victim)
    refund, in_batch = _remove_from_batch(r, row, victim)
    release(r.limits, r.pool, r.progress, victim)
    r.progress[victim].status = PREEMPTED
    r.progress[victim].preemptions += 1
    r.ledger[victim].redo_until = max(r.ledger[victim].redo_until, r.progress[victim].computed)
    r.progress[victim].computed = 0
    r.progress[victim].placeholders = 0
    enqueue(r, victim, True)
    r.record.victims[r.at[PREEMPTED_NOW]] = victim
    r.at[PREEMPTED_NOW] += 1
    return refund, in_batch


@inlined
def _close_up(requests: I32, last: int, request: int) -> None:
    """Remove one entry, which is there, from the first `last` + 1 and keep the others' order."""
    i = last
    moving = requests[i]
    while moving != request:
        i -= 1
        moving, requests[i] = requests[i], moving


@inlined
def _remove_from_batch(r: Replica, row: int, request: int) -> tuple[int, bool]:
    """Take a request back out of the batch under construction; returns its tokens and whether it was there."""
    for k in range(r.batches[row].length):
        if r.entries[row, k].request == request:
            refund = int(r.entries[row, k].tokens)
            r.batches[row].length -= 1
            for j in range(k, r.batches[row].length):
                r.entries[row, j].request = r.entries[row, j + 1].request
                r.entries[row, j].tokens = r.entries[row, j + 1].tokens
                r.entries[row, j].before = r.entries[row, j + 1].before
            return refund, True
    return 0, False


@inlined
def _add_to_batch(r: Replica, row: int, request: int, tokens: int, before: int) -> None:
    k = r.batches[row].length
    r.entries[row, k].request = request
    r.entries[row, k].tokens = tokens
    r.entries[row, k].before = before
    r.batches[row].length = k + 1


@inlined
def _schedule_waiting(r: Replica, row: int, threshold: int, budget: int) -> None:
    """Admit from the head of the queue while it fits; nobody overtakes a head that does not."""
    progress = r.progress
    at = r.at
    while budget > 0 and at[WAITING_COUNT] > 0 and at[RUNNING_COUNT] < r.limits.max_running:
        request = head(r)
        hits, idle = 0, 0
        if r.limits.prefix_caching:
            hits, idle = longest_hit(r, request)
        hit = hits * r.limits.block_size
        due = progress[request].known - hit
        if 0 < threshold < due:
            due = threshold
        if not r.limits.chunked_prefill and due > budget:
            return
        due = min(due, budget)
        if not _fits(r, request, hit + due, hits, idle):
            return
        _admit(r, request, hits, hit + due)
        _add_to_batch(r, row, request, due, hit)
        budget -= due


@inlined
def _fits(r: Replica, request: int, tokens: int, hits: int, idle: int) -> bool:
    """Whether a waiting request may start on `tokens` tokens, `hits` blocks of them cached, `idle` of those free."""
    limits = r.limits
    size = limits.block_size
    if limits.reserve_full_isl:
        # the whole known sequence must fit now, though only the first chunk's blocks are taken
        tokens = r.progress[request].known
    blocks = (min(tokens, limits.max_model_len) + size - 1) // size
    # the watermark does not bind an idle engine, which could otherwise admit nobody
    watermark = limits.watermark_blocks if r.at[RUNNING_COUNT] > 0 else 0
    return bool(blocks - hits + idle + watermark <= r.pool.counts[FREE_BLOCKS])


@inlined
def _admit(r: Replica, request: int, hits: int, tokens: int) -> None:
    """Move the head of the queue to the end of `running` with its cached blocks and new ones up to `tokens` tokens."""
    progress = r.progress
    dequeue(r)
    take_slot(r.pool, progress, request)
    for index in range(hits):
        hold_cached(r.pool, progress, request, cached_block(r.pool, block_key(r, request, index)))
    progress[request].hashed = hits
    progress[request].computed = hits * r.limits.block_size
    _grow(r, request, tokens)
    if progress[request].status == WAITING:
        progress[request].hit = progress[request].computed
    progress[request].status = RUNNING
    r.running[r.at[RUNNING_COUNT]] = request
    r.at[RUNNING_COUNT] += 1
    r.record.admitted[r.at[ADMITTED]] = request
    r.at[ADMITTED] += 1


@inlined
def _advance_computed(r: Replica, row: int) -> None:
    """Count the batch's tokens as computed and mark who samples: those with nothing left that is known."""
    progress = r.progress
    for k in range(r.batches[row].length):
        request = r.entries[row, k].request
        computed = progress[request].computed + r.entries[row, k].tokens
        progress[request].computed = computed
        samples = computed == progress[request].known + progress[request].placeholders
        r.entries[row, k].samples = samples
        if samples and r.limits.pipeline_depth > 1:
            progress[request].placeholders += 1
