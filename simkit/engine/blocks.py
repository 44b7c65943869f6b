"""Paged KV memory: which blocks are free, in what order they are reused, who holds them.

The free queue's order decides which cached content survives: vLLM takes blocks from the front, returns blocks that
hold reusable content to the end and others to the front (vLLM 0.32 block_pool.py).

As long as nobody has come back for content of its own, and the workload names none, it does not matter which blocks a
request holds. Where the replica was made so, they are only counted until then, which spares the caches of a fleet's
processor some 20 MB a replica (`name_blocks`).
"""

from simkit.compiled import called, inlined
from simkit.engine.prefix import block_key, cached_block, group_key, name_own, unregister
from simkit.engine.state import (
    CHUNKS_LEAVING_NONE,
    FREE_BLOCKS,
    FREE_SLOTS,
    NAMED,
    RUNNING_COUNT,
    STATE_MARK,
    STATES_LOST,
    Limits,
    Pool,
    Records,
    Replica,
)
from simkit.engine.windows import blocks_behind, columns, groups_of, sees_window


@inlined
def push_front(pool: Pool, block: int) -> None:
    """Make a block the next to be reused."""
    first = pool.blocks[0].after
    pool.blocks[block].after = first
    pool.blocks[block].before = 0
    pool.blocks[first].before = block
    pool.blocks[0].after = block
    pool.counts[FREE_BLOCKS] += 1


@inlined
def push_back(pool: Pool, block: int) -> None:
    """Make a block the last to be reused."""
    last = pool.blocks[0].before
    pool.blocks[block].before = last
    pool.blocks[block].after = 0
    pool.blocks[last].after = block
    pool.blocks[0].before = block
    pool.counts[FREE_BLOCKS] += 1


@inlined
def take_out(pool: Pool, block: int) -> None:
    """Remove a block from wherever it stands in the free queue."""
    pool.blocks[pool.blocks[block].before].after = pool.blocks[block].after
    pool.blocks[pool.blocks[block].after].before = pool.blocks[block].before
    pool.counts[FREE_BLOCKS] -= 1


@inlined
def take_slot(pool: Pool, progress: Records, request: int) -> None:
    """Give a request that enters `running` a row of the block table."""
    pool.counts[FREE_SLOTS] -= 1
    progress[request].slot = pool.free_slots[pool.counts[FREE_SLOTS]]


@inlined
def hold_cached(pool: Pool, progress: Records, request: int, block: int) -> None:
    """Append a block that already holds the right content, in use or free, to the request's blocks."""
    if pool.blocks[block].references == 0:
        take_out(pool, block)
    pool.blocks[block].references += 1
    pool.table[progress[request].slot, progress[request].held] = block
    progress[request].held += 1


@called
def hold_cached_in_groups(limits: Limits, pool: Pool, slot: int, index: int, hits: int, key: int) -> None:
    """The same in each group's row, for block `index` of a hit of `hits`: 0 where no token after the hit sees it."""
    for group in range(groups_of(limits)):
        block = 0
        if not sees_window(limits, group) or index >= blocks_behind(limits, hits * limits.block_size):
            block = cached_block(pool, group_key(limits, key, group))
        if block != 0:
            if pool.blocks[block].references == 0:
                take_out(pool, block)
            pool.blocks[block].references += 1
        pool.table[slot, group * columns(limits, pool) + index] = block


@inlined
def hold_new(limits: Limits, pool: Pool, progress: Records, request: int, count: int, states: int) -> None:
    """Append `count` blocks to each group's row, from the front of the free queue; what they were registered for is
    forgotten. Where layers keep states, only the last `states` of their rows' are taken, the others are not there."""
    held = progress[request].held
    progress[request].held = held + count
    if pool.counts[NAMED] == 0:
        pool.counts[FREE_BLOCKS] -= count
        return
    slot = progress[request].slot
    for group in range(groups_of(limits)):
        first = group * columns(limits, pool) + held
        last = first + count
        if limits.state_chunks != STATES_LOST and sees_window(limits, group):
            if held > 0 and limits.state_chunks < CHUNKS_LEAVING_NONE:
                pool.table[slot, STATE_MARK] = held
            pool.table[slot, first : last - states] = 0
            first = max(first, last - states)
        for i in range(first, last):
            block = pool.blocks[0].after
            take_out(pool, block)
            if pool.blocks[block].key != 0:
                unregister(pool, block)
            pool.blocks[block].references = 1
            pool.table[slot, i] = block


@called
def hold_state(limits: Limits, pool: Pool, progress: Records, request: int) -> None:
    """Take the blocks that a request's layers keep their states in, for as long as it runs; their content is nobody
    else's."""
    if pool.counts[NAMED] == 0:
        pool.counts[FREE_BLOCKS] -= limits.state_blocks
        return
    slot = progress[request].slot
    for i in range(pool.table.shape[1] - limits.state_blocks, pool.table.shape[1]):
        block = pool.blocks[0].after
        take_out(pool, block)
        if pool.blocks[block].key != 0:
            unregister(pool, block)
        pool.blocks[block].references = 1
        pool.table[slot, i] = block


@inlined
def release(limits: Limits, pool: Pool, progress: Records, request: int) -> None:
    """Give all of a request's blocks and its slot back.

    From the tail to the head, so that a prefix outlives what follows it; blocks without reusable content go to the
    front of the queue, the tail's at the very front (vLLM < 0.24: to the end, with the others).
    """
    slot = progress[request].slot
    held = progress[request].held
    if pool.counts[NAMED] == 0:
        pool.counts[FREE_BLOCKS] += held + limits.state_blocks
        held = 0
    elif limits.state_blocks > 0:
        _release_states(limits, pool, slot)
    for group in range(groups_of(limits)):
        first = group * columns(limits, pool)
        to_front = limits.uncached_free_to_front
        if limits.uncached_leave_to_front and not limits.chunked_window and sees_window(limits, group):
            to_front = True  # vLLM 0.23 SlidingWindowManager.free
        _release_columns(pool, slot, first, first + held, to_front)
    progress[request].held = 0
    progress[request].hashed = 0
    pool.free_slots[pool.counts[FREE_SLOTS]] = slot
    pool.counts[FREE_SLOTS] += 1


@called
def _release_states(limits: Limits, pool: Pool, slot: int) -> None:
    last = pool.table.shape[1]
    _release_columns(pool, slot, last - limits.state_blocks, last, limits.uncached_free_to_front)


@called
def name_blocks(r: Replica) -> None:
    """From counting blocks to knowing them: give running requests as many as they hold, of all that are free.

    Which they get, and in what order the free ones stand, nobody can tell: what free blocks held has no one to ask
    for it, and all of them come before what is given back from now on.
    """
    pool = r.pool
    last = len(pool.blocks) - 1
    pool.counts[NAMED] = 1
    pool.counts[FREE_BLOCKS] = last
    for block in range(last + 1):
        pool.blocks[block].after = block + 1 if block < last else 0
        pool.blocks[block].before = block - 1 if block > 0 else last
    for i in range(r.at[RUNNING_COUNT]):
        request = r.running[i]
        held = r.progress[request].held
        r.progress[request].held = 0
        hold_new(r.limits, pool, r.progress, request, held, 1)
        for index in range(r.progress[request].hashed):
            name_own(pool, pool.table[r.progress[request].slot, index], block_key(r, request, index))


@inlined
def _release_columns(pool: Pool, slot: int, first: int, last: int, uncached_to_front: bool) -> None:
    for i in range(last - 1, first - 1, -1):
        block = pool.table[slot, i]
        if block == 0:
            continue
        pool.blocks[block].references -= 1
        if pool.blocks[block].references == 0 and (pool.blocks[block].key != 0 or not uncached_to_front):
            push_back(pool, block)
    if uncached_to_front:
        for i in range(first, last):
            block = pool.table[slot, i]
            if block != 0 and pool.blocks[block].key == 0:
                push_front(pool, block)


@called
def leave_windows(limits: Limits, pool: Pool, progress: Records, request: int) -> None:
    """Give back what windows have passed of a running request (vLLM SingleTypeKVCacheManager.remove_skipped_blocks)."""
    settled = progress[request].computed
    if limits.frees_settled:
        settled = max(0, settled - progress[request].unsettled)
    behind = min(blocks_behind(limits, settled), progress[request].held)
    slot = progress[request].slot
    if limits.state_chunks != STATES_LOST:
        _leave_states(limits, pool, slot, behind)
        return
    for group in range(groups_of(limits)):
        if not sees_window(limits, group):
            continue
        begin = group * columns(limits, pool)
        first = begin + behind
        while first > begin and pool.table[slot, first - 1] != 0:
            first -= 1
        _release_columns(pool, slot, first, begin + behind, limits.uncached_leave_to_front)
        for i in range(first, begin + behind):
            pool.table[slot, i] = 0


@called
def _leave_states(limits: Limits, pool: Pool, slot: int, behind: int) -> None:
    """The same of states, between which there are gaps; STATE_MARK says how far it was done before."""
    since = pool.table[slot, STATE_MARK]
    if limits.state_chunks < CHUNKS_LEAVING_NONE:
        _leave_some_states(limits, pool, slot, behind, since - 1)
        return
    if behind <= since:
        return
    for group in range(groups_of(limits)):
        if sees_window(limits, group):
            begin = group * columns(limits, pool)
            _release_columns(pool, slot, begin + since, begin + behind, limits.uncached_leave_to_front)
            pool.table[slot, begin + since : begin + behind] = 0
    pool.table[slot, STATE_MARK] = behind


@inlined
def _leave_some_states(limits: Limits, pool: Pool, slot: int, behind: int, latest: int) -> None:
    """What vLLM before 0.30 gives back of states: those up to a gap, and the `latest` that a chunk began from."""
    for group in range(groups_of(limits)):
        if sees_window(limits, group):
            begin = group * columns(limits, pool)
            first = begin + behind
            while first > begin and pool.table[slot, first - 1] != 0:
                first -= 1
            _release_columns(pool, slot, first, begin + behind, limits.uncached_leave_to_front)
            pool.table[slot, first : begin + behind] = 0
            if 0 <= latest < behind:
                _release_columns(pool, slot, begin + latest, begin + latest + 1, limits.uncached_leave_to_front)
                pool.table[slot, begin + latest] = 0
