"""Prefix reuse: which content is in which block.

Only whole blocks are reusable. A block's content is named by a key that stands for every token from the request's
first to the block's last, so equal keys mean equal KV. Keys come from the workload's prefix-chained ids; blocks past
those are named by their request and position: nobody else can share them, but the request itself finds them again
after a preemption. Until there is one nobody looks for them, and they stay off the map, which takes most of the time.
"""

from simkit.compiled import called, inlined
from simkit.engine.state import (
    DISTINCT_KEYS,
    DROP_BY_KIND,
    DROP_FROM_END,
    KEEP_HIT,
    NAMED,
    STATE_FROM,
    STATE_STEP,
    STATES_LOST,
    STEPS,
    Limits,
    Pool,
    Replica,
)
from simkit.engine.windows import blocks_behind, blocks_for_hit, columns, groups_of, sees_window, stays_cached

_POSITION_BITS = 24  # blocks a request can name by itself: 16.7 million
_SPREAD = 2654435761  # Knuth's multiplicative hashing, 2^32 / golden ratio
OFF_MAP = -1  # the twin of a block that is named but not in the map


@inlined
def block_key(r: Replica, request: int, index: int) -> int:
    """The key of block `index` of a request: positive if the workload names its content, negative if it is its own."""
    if index < r.requests[request].content_blocks:
        span = r.limits.content_span
        return int(r.content_ids[r.requests[request].first_content + index // span] * span + index % span + 1)
    return -((int(request) << _POSITION_BITS) + index + 1)


@inlined
def home(pool: Pool, key: int) -> int:
    """Where a key's search begins."""
    folded = (key ^ (key >> 31)) & 0x7FFFFFFF
    return ((folded * _SPREAD) >> 15) & (len(pool.places.key) - 1)


@inlined
def find(pool: Pool, key: int) -> int:
    """The place of a key in the map, or the empty place where it would go."""
    mask = len(pool.places.key) - 1
    i = home(pool, key)
    while pool.places[i].key != 0 and pool.places[i].key != key:
        i = (i + 1) & mask
    return i


@inlined
def register(pool: Pool, block: int, key: int) -> None:
    """Offer a block for reuse; of twins the first registered is the one found (vLLM BlockHashToBlockMap)."""
    i = find(pool, key)
    pool.blocks[block].key = key
    pool.blocks[block].twin = 0
    if pool.places[i].key == 0:
        pool.places[i].key = key
        pool.places[i].block = block
        pool.counts[DISTINCT_KEYS] += 1
        return
    last = pool.places[i].block
    while pool.blocks[last].twin != 0:
        last = pool.blocks[last].twin
    pool.blocks[last].twin = block


@inlined
def name_own(pool: Pool, block: int, key: int) -> None:
    """Name a block whose content nobody will look for: it counts as reusable, and is off the map."""
    pool.blocks[block].key = key
    pool.blocks[block].twin = OFF_MAP
    pool.counts[DISTINCT_KEYS] += 1


@inlined
def make_findable(r: Replica, request: int) -> None:
    """Put what a request has filled with its own content on the map, because it is to come back for it."""
    progress = r.progress[request]
    if progress.findable == 1:
        return
    progress.findable = 1
    for index in range(progress.hashed):
        block = r.pool.table[progress.slot, index]
        if r.pool.blocks[block].twin == OFF_MAP:
            r.pool.counts[DISTINCT_KEYS] -= 1
            register(r.pool, block, r.pool.blocks[block].key)


@inlined
def unregister(pool: Pool, block: int) -> None:
    """Forget what a block holds, because it is about to hold something else."""
    if pool.blocks[block].twin == OFF_MAP:
        pool.blocks[block].key = 0
        pool.blocks[block].twin = 0
        pool.counts[DISTINCT_KEYS] -= 1
        return
    i = find(pool, pool.blocks[block].key)
    pool.blocks[block].key = 0
    if pool.places[i].block != block:
        previous = pool.places[i].block
        while pool.blocks[previous].twin != block:
            previous = pool.blocks[previous].twin
        pool.blocks[previous].twin = pool.blocks[block].twin
    elif pool.blocks[block].twin != 0:
        pool.places[i].block = pool.blocks[block].twin
    else:
        _close_gap(pool, i)
        pool.counts[DISTINCT_KEYS] -= 1


@inlined
def _close_gap(pool: Pool, gap: int) -> None:
    """Empty a place of the map and move later entries of its run back, so that every search still ends right."""
    mask = len(pool.places.key) - 1
    i = gap
    while True:
        i = (i + 1) & mask
        if pool.places[i].key == 0:
            break
        # an entry may move back only if its search passes the gap on the way
        if ((i - home(pool, pool.places[i].key)) & mask) >= ((i - gap) & mask):
            pool.places[gap].key = pool.places[i].key
            pool.places[gap].block = pool.places[i].block
            gap = i
    pool.places[gap].key = 0


@inlined
def cached_block(pool: Pool, key: int) -> int:
    """The block that holds a key's content; 0 if none does."""
    i = find(pool, key)
    return pool.places[i].block if pool.places[i].key == key else 0


@inlined
def longest_hit(r: Replica, request: int) -> tuple[int, int]:
    """How many leading blocks of a request are cached, and how many of these are free at the moment.

    At least the last token is computed again, so that there is something to sample from: a prompt of whole blocks
    that is cached to its end gives its last block up (vLLM 0.32 kv_cache_manager.py, get_computed_blocks). A draft that
    reads the target's hidden states needs those before the first token to compute, so the last block that is found is
    given up for it, too (FullAttentionManager.find_longest_cache_hit).
    """
    progress = r.progress
    if r.limits.window_groups > 0:
        hits, idle, junction = hit_in_groups(r, request, int(progress[request].known) - 1)
        progress[request].junction = junction
        return hits, idle
    hits = 0
    idle = 0
    for index in range((progress[request].known - 1) // r.limits.block_size):
        if index >= r.requests[request].content_blocks and progress[request].findable == 0:
            break
        block = cached_block(r.pool, block_key(r, request, index))
        if block == 0:
            break
        hits += 1
        if r.pool.blocks[block].references == 0:
            idle += 1
    if hits > 0 and r.limits.hit_drop != KEEP_HIT:
        hits -= 1
        if r.pool.blocks[cached_block(r.pool, block_key(r, request, hits))].references == 0:
            idle -= 1
    return hits, idle


@inlined
def register_full_blocks(r: Replica, request: int, tokens: int) -> None:
    """Offer every block that the first `tokens` tokens of a request fill and that is not offered yet."""
    size = r.limits.block_size
    index = int(r.progress[request].hashed)
    # runs once a token: multiplied, because a division takes as long as the rest of the turn
    while (index + 1) * size <= tokens:
        # a draft's KV of its last token depends on the next, so that has to be known (vLLM get_request_block_hasher)
        if r.limits.hashes_next_token and (index + 1) * size >= r.progress[request].known:
            break
        if r.pool.counts[NAMED] == 0:
            index += 1
            continue
        block = r.pool.table[r.progress[request].slot, index]
        if r.limits.window_groups > 0:
            prompt, junction = r.requests[request].prompt, r.progress[request].junction
            kept = stays_cached(r.limits, prompt, junction, index)
            _register_in_groups(r.limits, r.pool, r.progress[request].slot, index, block_key(r, request, index), kept)
        elif index >= r.requests[request].content_blocks and r.progress[request].findable == 0:
            name_own(r.pool, block, block_key(r, request, index))
        else:
            register(r.pool, block, block_key(r, request, index))
        index += 1
    if index > r.progress[request].hashed:
        if r.limits.state_chunks != STATES_LOST:
            slot = r.progress[request].slot
            r.pool.table[slot, STATE_STEP] = r.at[STEPS] + 1
            r.pool.table[slot, STATE_FROM] = r.progress[request].hashed
        r.progress[request].hashed = index


@inlined
def group_key(limits: Limits, key: int, group: int) -> int:
    """A key among those of one group's blocks: each group has its own KV of the same tokens."""
    if key > 0:
        return (key - 1) * groups_of(limits) + group + 1
    return (key + 1) * groups_of(limits) - group - 1


@called
def _register_in_groups(limits: Limits, pool: Pool, slot: int, index: int, key: int, kept: bool) -> None:
    """Offer block `index` of each group, but of windows' only if it is `kept`. All go on the map: what left a window
    may be asked for again.
    """
    for group in range(groups_of(limits)):
        block = pool.table[slot, group * columns(limits, pool) + index]
        if block != 0 and (kept or not sees_window(limits, group)):
            register(pool, block, group_key(limits, key, group))


@called
def _cached_in_all(limits: Limits, pool: Pool, key: int, windows: bool) -> bool:
    """Whether content is cached in all groups that see windows, or in all that do not."""
    for group in range(groups_of(limits)):
        if sees_window(limits, group) == windows and cached_block(pool, group_key(limits, key, group)) == 0:
            return False
    return True


@called
def _idle_of(limits: Limits, pool: Pool, key: int, windows: bool) -> int:
    """How many blocks of some content are free, in the groups that do not see windows or, with `windows`, in all."""
    idle = 0
    for group in range(groups_of(limits)):
        if windows or not sees_window(limits, group):
            block = cached_block(pool, group_key(limits, key, group))
            if block != 0 and pool.blocks[block].references == 0:
                idle += 1
    return idle


@called
def hit_in_groups(r: Replica, request: int, tokens: int) -> tuple[int, int, int]:
    """The longest hit within `tokens` tokens that all groups agree on: how many blocks, how many of them are free, and
    how many full attention alone would have found; 0 where there is none.

    Full attention needs every block of it. A window needs those that the next token sees: the last run of cached blocks
    that fills it, or begins at the first; a chunk, those of its own (vLLM HybridKVCacheCoordinator, with one kind of
    window: find_longest_cache_hit). Who gives a block up for a draft first looks for one more.
    """
    limits = r.limits
    drop = 0 if limits.hit_drop == KEEP_HIT else 1
    several = groups_of(limits) > 1
    last = (tokens + (1 if limits.hit_drop == DROP_FROM_END and several else 0)) // limits.block_size
    hits = tokens // limits.block_size
    if limits.full_groups > 0:
        most = min(hits + drop, last)
        hits = 0
        while hits < most and _cached_in_all(limits, r.pool, block_key(r, request, hits), False):
            hits += 1
        hits = max(0, hits - drop)
        tokens = hits * limits.block_size
    whole = hits
    most = hits if limits.hit_drop == DROP_BY_KIND else min(hits + drop, last)
    if limits.chunked_window:
        hits = blocks_behind(limits, tokens)
        while hits < most and _cached_in_all(limits, r.pool, block_key(r, request, hits), True):
            hits += 1
    else:
        needed = blocks_for_hit(limits) + drop
        index = most
        hits = most
        while index > 0 and hits - index < needed:
            index -= 1
            if not _cached_in_all(limits, r.pool, block_key(r, request, index), True):
                hits = index
        hits = max(0, hits - drop)
    behind = blocks_behind(limits, hits * limits.block_size)
    idle = 0
    for index in range(hits):
        idle += _idle_of(limits, r.pool, block_key(r, request, index), index >= behind)
    return hits, idle, whole if limits.full_groups > 0 and whole > hits else 0
