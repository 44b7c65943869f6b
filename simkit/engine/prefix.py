"""Prefix reuse: which content is in which block.

Only whole blocks are reusable. A block's content is named by a key that stands for every token from the request's
first to the block's last, so equal keys mean equal KV. Keys come from the workload's prefix-chained ids; blocks past
those are named by their request and position: nobody else can share them, but the request itself finds them again
after a preemption.
"""

from simkit.compiled import compiled
from simkit.engine.state import DISTINCT_KEYS, Limits, Pool, Progress, Requests

_POSITION_BITS = 24  # blocks a request can name by itself: 16.7 million
_SPREAD = 2654435761  # Knuth's multiplicative hashing, 2^32 / golden ratio


@compiled
def block_key(requests: Requests, request: int, index: int) -> int:
    """The key of block `index` of a request: positive if the workload names its content, negative if it is its own."""
    start = requests.hash_start[request]
    i = start + index // requests.hash_span
    if i < requests.hash_start[request + 1]:
        return requests.hash_ids[i] * requests.hash_span + index % requests.hash_span + 1
    return -((int(request) << _POSITION_BITS) + index + 1)


@compiled
def home(pool: Pool, key: int) -> int:
    """Where a key's search begins."""
    folded = (key ^ (key >> 31)) & 0x7FFFFFFF
    return ((folded * _SPREAD) >> 15) & (len(pool.map_key) - 1)


@compiled
def find(pool: Pool, key: int) -> int:
    """The place of a key in the map, or the empty place where it would go."""
    mask = len(pool.map_key) - 1
    i = home(pool, key)
    while pool.map_key[i] != 0 and pool.map_key[i] != key:
        i = (i + 1) & mask
    return i


@compiled
def register(pool: Pool, block: int, key: int) -> None:
    """Offer a block for reuse. Twins are kept in order: the first registered is the one found (vLLM BlockHashToBlockMap)."""
    i = find(pool, key)
    pool.key[block] = key
    pool.twin[block] = 0
    if pool.map_key[i] == 0:
        pool.map_key[i] = key
        pool.map_block[i] = block
        pool.count[DISTINCT_KEYS] += 1
        return
    last = pool.map_block[i]
    while pool.twin[last] != 0:
        last = pool.twin[last]
    pool.twin[last] = block


@compiled
def unregister(pool: Pool, block: int) -> None:
    """Forget what a block holds, because it is about to hold something else."""
    i = find(pool, pool.key[block])
    pool.key[block] = 0
    if pool.map_block[i] != block:
        previous = pool.map_block[i]
        while pool.twin[previous] != block:
            previous = pool.twin[previous]
        pool.twin[previous] = pool.twin[block]
    elif pool.twin[block] != 0:
        pool.map_block[i] = pool.twin[block]
    else:
        _close_gap(pool, i)
        pool.count[DISTINCT_KEYS] -= 1


@compiled
def _close_gap(pool: Pool, gap: int) -> None:
    """Empty a place of the map and move later entries of its run back, so that every search still ends right."""
    mask = len(pool.map_key) - 1
    i = gap
    while True:
        i = (i + 1) & mask
        if pool.map_key[i] == 0:
            break
        # an entry may move back only if its search passes the gap on the way
        if ((i - home(pool, pool.map_key[i])) & mask) >= ((i - gap) & mask):
            pool.map_key[gap] = pool.map_key[i]
            pool.map_block[gap] = pool.map_block[i]
            gap = i
    pool.map_key[gap] = 0


@compiled
def cached_block(pool: Pool, key: int) -> int:
    """The block that holds a key's content; 0 if none does."""
    i = find(pool, key)
    return pool.map_block[i] if pool.map_key[i] == key else 0


@compiled
def longest_hit(limits: Limits, requests: Requests, progress: Progress, pool: Pool, request: int) -> tuple[int, int]:
    """How many leading blocks of a request are cached, and how many of these are free at the moment.

    At least the last token is computed again, so that there is something to sample from: a prompt of whole blocks
    that is cached to its end gives its last block up (vLLM 0.32 kv_cache_manager.py, get_computed_blocks).
    """
    hits = 0
    idle = 0
    for index in range((progress.known[request] - 1) // limits.block_size):
        block = cached_block(pool, block_key(requests, request, index))
        if block == 0:
            break
        hits += 1
        if pool.references[block] == 0:
            idle += 1
    return hits, idle


@compiled
def register_full_blocks(
    limits: Limits, requests: Requests, progress: Progress, pool: Pool, request: int, tokens: int
) -> None:
    """Offer every block that the first `tokens` tokens of a request fill and that is not offered yet."""
    full = tokens // limits.block_size
    for index in range(progress.hashed[request], full):
        register(pool, pool.table[progress.slot[request], index], block_key(requests, request, index))
    if full > progress.hashed[request]:
        progress.hashed[request] = full
