"""Paged KV memory: which blocks are free, in what order they are reused, who holds them.

The free queue's order decides which cached content survives: vLLM takes blocks from the front, returns blocks that
hold reusable content to the end and others to the front (vLLM 0.32 block_pool.py).
"""

from simkit.compiled import inlined
from simkit.engine.prefix import unregister
from simkit.engine.state import FREE_BLOCKS, FREE_SLOTS, Limits, Pool, Records


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


@inlined
def hold_new(pool: Pool, progress: Records, request: int, count: int) -> None:
    """Append `count` blocks from the front of the free queue; content they were registered for is forgotten."""
    slot = progress[request].slot
    held = progress[request].held
    for i in range(held, held + count):
        block = pool.blocks[0].after
        take_out(pool, block)
        if pool.blocks[block].key != 0:
            unregister(pool, block)
        pool.blocks[block].references = 1
        pool.table[slot, i] = block
    progress[request].held = held + count


@inlined
def release(limits: Limits, pool: Pool, progress: Records, request: int) -> None:
    """Give all of a request's blocks and its slot back.

    From the tail to the head, so that a prefix outlives what follows it; blocks without reusable content go to the
    front of the queue, the tail's at the very front (vLLM < 0.24: to the end, with the others).
    """
    slot = progress[request].slot
    held = progress[request].held
    for i in range(held - 1, -1, -1):
        block = pool.table[slot, i]
        pool.blocks[block].references -= 1
        if pool.blocks[block].references == 0 and (pool.blocks[block].key != 0 or not limits.uncached_free_to_front):
            push_back(pool, block)
    if limits.uncached_free_to_front:
        for i in range(held):
            block = pool.table[slot, i]
            if pool.blocks[block].key == 0:
                push_front(pool, block)
    progress[request].held = 0
    progress[request].hashed = 0
    pool.free_slots[pool.counts[FREE_SLOTS]] = slot
    pool.counts[FREE_SLOTS] += 1
