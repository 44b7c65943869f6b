"""What a discipline can do in a step: give tokens, take blocks, admit, preempt. Rules are vLLM's."""

from simkit.compiled import called, inlined
from simkit.engine.blocks import (
    hold_cached,
    hold_cached_in_groups,
    hold_new,
    hold_state,
    leave_windows,
    name_blocks,
    release,
    take_slot,
)
from simkit.engine.ordering import more_urgent, serve_input, urgency
from simkit.engine.prefix import block_key, cached_block, make_findable, register_full_blocks
from simkit.engine.ring import asynchronous, ring_row
from simkit.engine.state import (
    ADMITTED,
    COPIED_BLOCKS,
    DECODE,
    FAIR,
    FCFS,
    FREE_BLOCKS,
    I32,
    IN_FLIGHT,
    NAMED,
    PREEMPTED,
    PREEMPTED_NOW,
    RUNNING,
    RUNNING_COUNT,
    STATE_FROM,
    STATES_LOST,
    WAITING,
    WAITING_COUNT,
    Replica,
)
from simkit.engine.waiting import dequeue, enqueue, head
from simkit.engine.windows import blocks_at_admission, new_blocks, states_left


@inlined
def open_batch(r: Replica) -> int:
    """Begin a step: an empty batch in the next row of the ring, which is returned."""
    row = ring_row(r, r.at[IN_FLIGHT])
    r.batches[row].length = 0
    r.at[ADMITTED] = 0
    r.at[PREEMPTED_NOW] = 0
    r.at[COPIED_BLOCKS] = 0
    if r.limits.preemptive:
        _make_room_for_urgent(r, row)
    return row


@inlined
def _make_room_for_urgent(r: Replica, row: int) -> None:
    """Where all places are taken, the least urgent running request leaves for a waiting one that is more urgent."""
    if r.at[WAITING_COUNT] > 0 and r.at[RUNNING_COUNT] == r.limits.max_running:
        victim = choose_victim(r)
        if urgency(r, head(r)) < urgency(r, victim):
            preempt(r, row, victim)


@inlined
def seal_batch(r: Replica, row: int) -> None:
    """End a step's planning: its tokens count as computed from here on; who has nothing left that is known samples."""
    progress = r.progress
    for k in range(r.batches[row].length):
        request = r.entries[row, k].request
        computed = progress[request].computed + r.entries[row, k].tokens
        progress[request].computed = computed
        if r.limits.window_groups > 0:
            progress[request].unsettled += r.entries[row, k].tokens
        # beyond what is known lie the drafts to check
        drafted = computed - progress[request].known - progress[request].placeholders
        samples = drafted + 1 if 0 <= drafted <= r.limits.speculative_tokens else 0
        if samples > 1 and progress[request].phase != DECODE:
            # empty drafts: none is accepted (`drafts.padded`)
            if asynchronous(r):
                progress[request].empty = drafted
            else:
                progress[request].computed -= drafted
                samples = 1
        r.entries[row, k].samples = samples
        if samples > 0 and asynchronous(r):
            # one for each draft, too: which are accepted is not known yet (vLLM AsyncScheduler._update_after_schedule)
            progress[request].placeholders += samples


@inlined
def give(r: Replica, row: int, request: int, tokens: int, before: int) -> None:
    """Put a request in the batch: `tokens` new tokens after `before` computed ones; it has the blocks for them."""
    k = r.batches[row].length
    r.entries[row, k].request = request
    r.entries[row, k].tokens = tokens
    r.entries[row, k].before = before
    r.batches[row].length = k + 1


@inlined
def grow(r: Replica, request: int, tokens: int) -> bool:
    """Get a running request the blocks it needs for `tokens` tokens; False, and nothing done, if they are not there."""
    return _hold_up_to(r, request, tokens, tokens + r.limits.lookahead_tokens)


@inlined
def _hold_up_to(r: Replica, request: int, tokens: int, slots: int) -> bool:
    """The same, with room for `slots` tokens, or all that fit its longest context (vLLM allocate_slots)."""
    size = r.limits.block_size
    held = r.progress[request].held
    if r.limits.window_groups > 0:
        leave_windows(r.limits, r.pool, r.progress, request)
    if slots > held * size:
        new = (min(slots, r.limits.max_model_len) + size - 1) // size - held
        states = states_left(r.limits, r.progress[request], r.progress[request].computed, tokens)
        if new_blocks(r.limits, new, states) > r.pool.counts[FREE_BLOCKS]:
            return False
        hold_new(r.limits, r.pool, r.progress, request, new, states)
    if r.limits.prefix_caching:
        # registered before it is executed, so that later requests of this very step hit (vLLM allocate_slots)
        register_full_blocks(r, request, min(tokens, r.progress[request].known))
    return True


@inlined
def fits(r: Replica, request: int, tokens: int, hits: int, idle: int) -> bool:
    """Whether a waiting request may start on `tokens` tokens, `hits` blocks of them cached, `idle` of those free."""
    tokens += r.limits.admission_lookahead_tokens
    if r.limits.reserve_full_isl:
        # the whole known sequence must fit now, though only the first chunk's blocks are taken
        if r.limits.window_groups == 0:
            tokens = max(tokens, r.progress[request].known)
        elif blocks_at_admission(r.limits, r.progress[request].known, hits) > _spare_blocks(r, idle):
            return False
    # a state more in each group that keeps some, beside the one that `has_room` counts
    second = states_left(r.limits, r.progress[request], hits * r.limits.block_size, tokens) - 1
    return has_room(r, tokens, hits, idle + second * r.limits.window_groups)


@inlined
def has_room(r: Replica, tokens: int, hits: int, idle: int) -> bool:
    """Whether blocks for `tokens` tokens are free above the watermark, `hits` being cached, `idle` of those free."""
    limits = r.limits
    size = limits.block_size
    blocks = (min(tokens, limits.max_model_len) + size - 1) // size
    return bool(new_blocks(limits, blocks - hits, 1) + limits.state_blocks <= _spare_blocks(r, idle))


@inlined
def _spare_blocks(r: Replica, idle: int) -> int:
    """Free blocks above the watermark but the `idle` ones of a hit."""
    # the watermark does not bind an idle engine, which could otherwise admit nobody
    watermark = r.limits.watermark_blocks if r.at[RUNNING_COUNT] > 0 else 0
    return int(r.pool.counts[FREE_BLOCKS] - idle - watermark)


@inlined
def admit(r: Replica, request: int, hits: int, tokens: int) -> None:
    """Move the head of the queue to the end of `running` with its cached blocks and new ones up to `tokens` tokens."""
    progress = r.progress
    dequeue(r)
    take_slot(r.pool, progress, request)
    if r.limits.state_chunks != STATES_LOST:
        r.pool.table[progress[request].slot, STATE_FROM:] = 0
    if r.limits.state_blocks > 0:
        hold_state(r.limits, r.pool, progress, request)
    for index in range(hits):
        if r.limits.window_groups > 0:
            hold_cached_in_groups(r.limits, r.pool, progress[request].slot, index, hits, block_key(r, request, index))
            progress[request].held += 1
        else:
            hold_cached(r.pool, progress, request, cached_block(r.pool, block_key(r, request, index)))
    progress[request].hashed = hits
    progress[request].computed = hits * r.limits.block_size
    _hold_up_to(r, request, tokens, tokens + r.limits.admission_lookahead_tokens)
    if progress[request].status == WAITING:
        progress[request].hit = progress[request].computed
        if r.limits.ordering == FAIR:
            serve_input(r, request)
    _enter_running(r, request)


@inlined
def _enter_running(r: Replica, request: int) -> None:
    r.progress[request].status = RUNNING
    r.running[r.at[RUNNING_COUNT]] = request
    r.at[RUNNING_COUNT] += 1
    r.record.admitted[r.at[ADMITTED]] = request
    r.at[ADMITTED] += 1


@inlined
def run_again(r: Replica, request: int) -> None:
    """Put a request that was swapped out, and has left the queue, at the end of `running`, as yet without blocks."""
    take_slot(r.pool, r.progress, request)
    _enter_running(r, request)


@inlined
def reserve(r: Replica, request: int, tokens: int) -> None:
    """Take the blocks of a request up to `tokens` tokens, which must be free, long before they are filled."""
    size = r.limits.block_size
    missing = (min(tokens, r.limits.max_model_len) + size - 1) // size - r.progress[request].held
    if missing > 0:
        hold_new(r.limits, r.pool, r.progress, request, missing, 1)


@inlined
def choose_victim(r: Replica) -> int:
    """Whom to preempt: the latest admitted, or the least urgent of all running."""
    victim = int(r.running[r.at[RUNNING_COUNT] - 1])
    if r.limits.ordering != FCFS:
        for i in range(r.at[RUNNING_COUNT]):
            if more_urgent(r, victim, r.running[i]):
                victim = int(r.running[i])
    return victim


@called
def preempt(r: Replica, row: int, victim: int) -> tuple[int, int]:
    """Take a running request's blocks; it will compute everything again, outputs included, and keeps its outputs.

    With swapping, their content goes to the host, whose memory is not bounded here, and comes back (`swap_in`).
    Returns the tokens it gives back to this step's budget, and its place in `running`, where those behind it move up.
    """
    if r.limits.prefix_caching and r.pool.counts[NAMED] == 0:
        name_blocks(r)  # it may find its own again
    r.at[RUNNING_COUNT] -= 1
    place = _close_up(r.running, r.at[RUNNING_COUNT], victim)
    refund = _remove_from_batch(r, row, victim)
    if r.limits.swap_block_ns > 0:
        r.at[COPIED_BLOCKS] += r.progress[victim].held
    make_findable(r, victim)
    release(r.limits, r.pool, r.progress, victim)
    r.progress[victim].status = PREEMPTED
    r.progress[victim].preemptions += 1
    # of drafts in flight who knows what will be accepted
    computed = min(r.progress[victim].computed, r.progress[victim].known)
    r.ledger[victim].redo_until = max(r.ledger[victim].redo_until, computed)
    if r.limits.swap_block_ns == 0:
        r.progress[victim].computed = 0
    r.progress[victim].placeholders = 0
    enqueue(r, victim, True)
    r.record.victims[r.at[PREEMPTED_NOW]] = victim
    r.at[PREEMPTED_NOW] += 1
    return refund, place


@inlined
def _close_up(requests: I32, last: int, request: int) -> int:
    """Remove one entry, which is there, from the first `last` + 1, keep the others' order, and return its place."""
    i = last
    moving = requests[i]
    while moving != request:
        i -= 1
        moving, requests[i] = requests[i], moving
    return i


@inlined
def _remove_from_batch(r: Replica, row: int, request: int) -> int:
    """Take a request back out of the batch under construction; returns its tokens, 0 if it was not there."""
    for k in range(r.batches[row].length):
        if r.entries[row, k].request == request:
            refund = int(r.entries[row, k].tokens)
            r.batches[row].length -= 1
            for j in range(k, r.batches[row].length):
                r.entries[row, j].request = r.entries[row, j + 1].request
                r.entries[row, j].tokens = r.entries[row, j + 1].tokens
                r.entries[row, j].before = r.entries[row, j + 1].before
            return refund
    return 0
