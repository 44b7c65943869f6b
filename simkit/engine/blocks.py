"""Paged KV memory: which blocks are free, in what order they are reused, who holds them.

The free queue's order decides which cached content survives: vLLM takes blocks from the front, returns blocks that
hold reusable content to the end and others to the front (vLLM 0.32 block_pool.py).
"""

from simkit.compiled import compiled
from simkit.engine.prefix import unregister
from simkit.engine.state import FREE_BLOCKS, FREE_SLOTS, Limits, Pool, Progress


@compiled
def push_front(pool: Pool, block: int) -> None:
    """Make a block the next to be reused."""
    first = pool.after[0]
    pool.after[block] = first
    pool.before[block] = 0
    pool.before[first] = block
    pool.after[0] = block
    pool.count[FREE_BLOCKS] += 1


@compiled
def push_back(pool: Pool, block: int) -> None:
    """Make a block the last to be reused."""
    last = pool.before[0]
    pool.before[block] = last
    pool.after[block] = 0
    pool.after[last] = block
    pool.before[0] = block
    pool.count[FREE_BLOCKS] += 1


@compiled
def take_out(pool: Pool, block: int) -> None:
    """Remove a block from wherever it stands in the free queue."""
    pool.after[pool.before[block]] = pool.after[block]
    pool.before[pool.after[block]] = pool.before[block]
    pool.count[FREE_BLOCKS] -= 1


@compiled
def take_slot(pool: Pool, progress: Progress, request: int) -> None:
    """Give a request that enters `running` a row of the block table."""
    pool.count[FREE_SLOTS] -= 1
    progress.slot[request] = pool.free_slots[pool.count[FREE_SLOTS]]


@compiled
def hold_cached(pool: Pool, progress: Progress, request: int, block: int) -> None:
    """Append a block that already holds the right content, in use or free, to the request's blocks."""
    if pool.references[block] == 0:
        take_out(pool, block)
    pool.references[block] += 1
    pool.table[progress.slot[request], progress.held[request]] = block
    progress.held[request] += 1


@compiled
def hold_new(pool: Pool, progress: Progress, request: int, count: int) -> None:
    """Append `count` blocks from the front of the free queue; content they were registered for is forgotten."""
    slot = progress.slot[request]
    held = progress.held[request]
    for i in range(held, held + count):
        block = pool.after[0]
        take_out(pool, block)
        if pool.key[block] != 0:
            unregister(pool, block)
        pool.references[block] = 1
        pool.table[slot, i] = block
    progress.held[request] = held + count


@compiled
def release(limits: Limits, pool: Pool, progress: Progress, request: int) -> None:
    """Give all of a request's blocks and its slot back.

    From the tail to the head, so that a prefix outlives what follows it; blocks without reusable content go to the
    front of the queue, the tail's at the very front (vLLM < 0.24: to the end, with the others).
    """
    slot = progress.slot[request]
    held = progress.held[request]
    for i in range(held - 1, -1, -1):
        block = pool.table[slot, i]
        pool.references[block] -= 1
        if pool.references[block] == 0 and (pool.key[block] != 0 or not limits.uncached_free_to_front):
            push_back(pool, block)
    if limits.uncached_free_to_front:
        for i in range(held):
            block = pool.table[slot, i]
            if pool.key[block] == 0:
                push_front(pool, block)
    progress.held[request] = 0
    progress.hashed[request] = 0
    pool.free_slots[pool.count[FREE_SLOTS]] = slot
    pool.count[FREE_SLOTS] += 1
