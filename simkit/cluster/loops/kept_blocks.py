"""KV blocks that somebody beside a request holds: what waits to be sent, and what has arrived for a request to come."""

from simkit.compiled import compiled
from simkit.engine.blocks import push_back, push_front, take_out
from simkit.engine.prefix import block_key, cached_block, register, unregister
from simkit.engine.state import FREE_BLOCKS, I32, I64, Replica


@compiled
def keep(r: Replica, row: int, blocks: I32) -> None:
    """Hold on to the first blocks of a request that the latest turn has ended; fills `blocks` with them.

    Right after that turn: nothing has been given to anybody since, and the request's row of the table still names them.
    """
    for i in range(len(blocks)):
        block = r.pool.table[r.progress[row].slot, i]
        if r.pool.blocks[block].references == 0:
            take_out(r.pool, block)
        r.pool.blocks[block].references += 1
        blocks[i] = block


@compiled
def let_go(r: Replica, blocks: I32) -> None:
    """Hold these blocks no longer; freed in the order of simkit.engine.blocks.release."""
    for i in range(len(blocks) - 1, -1, -1):
        block = blocks[i]
        r.pool.blocks[block].references -= 1
        if r.pool.blocks[block].references > 0:
            continue
        if r.pool.blocks[block].key != 0 or not r.limits.uncached_free_to_front:
            push_back(r.pool, block)
        else:
            push_front(r.pool, block)


@compiled
def make_room(r: Replica, row: int, spare: int, blocks: I32) -> int:
    """Hold blocks for the leading content of the request in a row, which need not have arrived: those that are cached,
    and new ones for the rest. Fills `blocks` and returns how many of them were cached; -1, and nothing is done, if
    fewer than `spare` would be left free.
    """
    cached = 0
    idle = 0
    while cached < min(len(blocks), r.requests[row].content_blocks):
        block = cached_block(r.pool, block_key(r, row, cached))
        if block == 0:
            break
        idle += int(r.pool.blocks[block].references == 0)
        blocks[cached] = block
        cached += 1
    if len(blocks) - cached + idle + spare > r.pool.counts[FREE_BLOCKS]:
        return -1
    for i in range(cached):
        if r.pool.blocks[blocks[i]].references == 0:
            take_out(r.pool, blocks[i])
        r.pool.blocks[blocks[i]].references += 1
    for i in range(cached, len(blocks)):
        block = r.pool.blocks[0].after
        take_out(r.pool, block)
        if r.pool.blocks[block].key != 0:
            unregister(r.pool, block)
        r.pool.blocks[block].references = 1
        blocks[i] = block
    return cached


@compiled
def land(r: Replica, row: int, first: int, blocks: I32) -> None:
    """The content of blocks `first` and on of a request's has arrived: it will be found as any cached prefix is.

    Where somebody else's block with the same content is there by now, that one is held instead: the request must find
    what is held for it, or it would need other blocks besides.
    """
    r.progress[row].findable = 1
    for i in range(first, len(blocks)):
        key = block_key(r, row, i)
        other = cached_block(r.pool, key)
        if other == 0:
            register(r.pool, blocks[i], key)
            continue
        if r.pool.blocks[other].references == 0:
            take_out(r.pool, other)
        r.pool.blocks[other].references += 1
        r.pool.blocks[blocks[i]].references = 0
        push_front(r.pool, blocks[i])
        blocks[i] = other


@compiled
def count_absent(r: Replica, contents: I64, absent: I64) -> int:
    """Fill `absent` with the content ids whose first block is not in the cache now; returns how many they are."""
    count = 0
    for i in range(len(contents)):
        if cached_block(r.pool, contents[i] * r.limits.content_span + 1) == 0:
            absent[count] = contents[i]
            count += 1
    return count
