"""Rules of KV memory: block tables, reference counts, the free queue, and the map from content to blocks."""

import numpy as np

from simkit.engine.prefix import OFF_MAP
from simkit.engine.state import (
    CHUNKS_LEAVING_NONE,
    DISTINCT_KEYS,
    DROP_KEEPING_ENDS,
    FREE_BLOCKS,
    FREE_SLOTS,
    KEEP_HIT,
    RUNNING,
    RUNNING_COUNT,
    STATES_LOST,
    Replica,
    columns_beside,
)
from simkit.engine.violation import (
    DOUBLE_FREE,
    FREE_QUEUE,
    LEAK,
    MEMORY,
    PREFIX_MAP,
    QUEUES,
    REFERENCES,
    SHARED,
    Violation,
)


def check_tables(r: Replica, step: int) -> None:
    """Each running request has a row of the block table of its own, and nobody else holds any block."""
    slots: dict[int, int] = {}
    size, width = r.pool.table.shape
    for request in _running(r):
        slot, held = int(r.progress["slot"][request]), int(r.progress["held"][request])
        if not (0 <= slot < size and 0 <= held <= width) or slot in slots:
            raise Violation(QUEUES, step, request, f"its row {slot} of the block table is another's, or out of bounds")
        slots[slot] = request
    if len(slots) + int(r.pool.counts[FREE_SLOTS]) != size:
        raise Violation(QUEUES, step, None, f"{len(slots)} rows of the block table in use of {size}, the rest not free")
    holds = (r.progress["held"] > 0) & (r.progress["status"] != RUNNING)
    if holds.any():
        raise Violation(LEAK, step, int(holds.argmax()), "holds blocks though it does not run")


STATE = -1  # in place of a group, of blocks that hold a request's states


def _running(r: Replica) -> list[int]:
    found: list[int] = r.running[: r.at[RUNNING_COUNT]].tolist()
    return found


def row_of_group(r: Replica, request: int, group: int) -> list[int]:
    """A running request's blocks in a group of layers; 0 where a window has passed."""
    slot, held = int(r.progress["slot"][request]), int(r.progress["held"][request])
    groups = r.limits.full_groups + r.limits.window_groups
    first = group * ((r.pool.table.shape[1] - columns_beside(r.limits)) // groups)
    blocks: list[int] = r.pool.table[slot, first : first + held].tolist()
    return blocks


def holders(r: Replica) -> dict[int, list[tuple[int, int, int]]]:
    """Block -> the (request, position, group of layers) that hold it, by the block table; STATE for a state's block."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for request in _running(r):
        row = r.pool.table[r.progress["slot"][request]]
        for index, block in enumerate(row[len(row) - r.limits.state_blocks :].tolist()):
            found.setdefault(block, []).append((request, index, STATE))
        for group in range(r.limits.full_groups + r.limits.window_groups):
            for index, block in enumerate(row_of_group(r, request, group)):
                if block != 0 or not _sees_window(r, group):
                    found.setdefault(block, []).append((request, index, group))
    return found


def _sees_window(r: Replica, group: int) -> bool:
    order = [False] * r.limits.full_groups + [True] * r.limits.window_groups
    return sorted(order, reverse=r.limits.windows_first)[group]


def check_windows(r: Replica, request: int, before: int, settled: int, step: int) -> None:
    """In every group there is what the token after `before` sees; and no more than that after `settled` does."""
    for group in range(r.limits.full_groups + r.limits.window_groups):
        row = row_of_group(r, request, group)
        windowed = _sees_window(r, group)
        if windowed and r.limits.state_chunks != STATES_LOST:
            _check_states(r, request, row, before, settled, step)
            continue
        if 0 in row[_first_seen(r, before) if windowed else 0 :]:
            raise Violation(MEMORY, step, request, f"group {group} gave back a block that token {before} sees")
        if windowed and any(row[: _first_seen(r, settled)]):
            raise Violation(LEAK, step, request, f"group {group} keeps a block that no token from {settled} on sees")


def _check_states(r: Replica, request: int, row: list[int], before: int, settled: int, step: int) -> None:
    """There are the state after `before` tokens and the one that the step leaves, but none from before `settled`."""
    size = r.limits.block_size
    if row[-1] == 0 or (before > 0 and row[(before - 1) // size] == 0):
        raise Violation(MEMORY, step, request, f"has no state after {before} tokens, or none that the step changes")
    # before vLLM 0.30 one between gaps stays until the request ends
    if r.limits.state_chunks >= CHUNKS_LEAVING_NONE and any(row[: max(0, settled - 1) // size]):
        raise Violation(LEAK, step, request, f"keeps a state from before the one after {settled} tokens")


def _first_seen(r: Replica, tokens: int) -> int:
    """The first block that the token after the first `tokens` sees through a window."""
    window = r.limits.window_tokens
    first = tokens - tokens % window if r.limits.chunked_window else max(0, tokens - window + 1)
    return first // r.limits.block_size


def free_queue(r: Replica, step: int = 0) -> list[int]:
    """The free blocks from front to end; Violation if the ring is broken."""
    after, before = r.pool.blocks["after"].tolist(), r.pool.blocks["before"].tolist()
    queue: list[int] = []
    seen = bytearray(len(after))
    block = after[0]
    while block != 0:
        if not 0 < block < len(after):
            raise Violation(FREE_QUEUE, step, None, f"leads to block {block}, which does not exist")
        if seen[block]:
            raise Violation(DOUBLE_FREE, step, None, f"block {block} is in the free queue twice")
        seen[block] = 1
        queue.append(block)
        block = after[block]
    for left, right in zip([0, *queue], [*queue, 0], strict=True):
        if before[right] != left:
            raise Violation(DOUBLE_FREE, step, None, f"block {right} stands in two places of the free queue")
    return queue


def check_blocks(r: Replica, step: int) -> None:
    """Every block is free or held, never both, and shared only by requests with the same content in it."""
    held = holders(r)
    references = r.pool.blocks["references"].tolist()
    for block, count in enumerate(references):
        owners = held.get(block, [])
        request = owners[0][0] if owners else None
        if len(owners) > 1 and len({content_key(r, *owner) for owner in owners}) > 1:
            # a count for all of them says that it was lent on purpose; a lower one, that it was handed out anew
            rule = SHARED if count == len(owners) else DOUBLE_FREE
            raise Violation(rule, step, owners[-1][0], f"block {block} is held by {owners} with different content")
        if count != len(owners):
            if count > 0 and not owners:
                raise Violation(LEAK, step, None, f"block {block} has {count} references and nobody holds it")
            raise Violation(REFERENCES, step, request, f"block {block}: {count} references, {len(owners)} holders")
    queue = free_queue(r, step)
    free = set(queue)
    both = free.intersection(held)
    if both:
        block = min(both)
        raise Violation(DOUBLE_FREE, step, held[block][0][0], f"block {block} is free, and held")
    lost = len(references) - 1 - len(held) - len(free)
    if lost > 0:
        block = min(set(range(1, len(references))) - free - set(held))
        raise Violation(LEAK, step, None, f"block {block} is neither free nor held")
    if len(queue) != r.pool.counts[FREE_BLOCKS]:
        raise Violation(FREE_QUEUE, step, None, f"{len(queue)} blocks in it, counted {r.pool.counts[FREE_BLOCKS]}")


def content_key(r: Replica, request: int, index: int, group: int = 0) -> tuple[int, int, int]:
    """What tells the content of a request's block `index` from others', said again without simkit.engine.prefix."""
    asked = r.requests[request]
    span = r.limits.content_span
    if group != STATE and index < int(asked["content_blocks"]):
        return int(r.content_ids[int(asked["first_content"]) + index // span]), index % span, group
    return -1 - request, index, group


def check_cache(r: Replica, step: int) -> None:
    """The map finds, for every registered content, all blocks registered for it, and nothing else."""
    keys = r.pool.blocks["key"].copy()
    places = r.pool.places
    used = np.flatnonzero(places["key"] != 0)
    named = _check_off_the_map(r, step)
    keys[r.pool.blocks["twin"] == OFF_MAP] = 0
    registered = set(keys[keys != 0].tolist())
    mapped = places["key"][used].tolist()
    if len(mapped) != len(set(mapped)) or set(mapped) != registered:
        raise Violation(PREFIX_MAP, step, None, f"{len(mapped)} contents in it, {len(registered)} registered by blocks")
    if r.pool.counts[DISTINCT_KEYS] != len(registered) + named:
        counted = r.pool.counts[DISTINCT_KEYS]
        raise Violation(PREFIX_MAP, step, None, f"counts {counted} contents of {len(registered) + named}")
    blocks_of: dict[int, list[int]] = {}
    for block, key in enumerate(keys.tolist()):
        blocks_of.setdefault(key, []).append(block)
    twins = r.pool.blocks["twin"].tolist()
    for key, block in zip(mapped, places["block"][used].tolist(), strict=True):
        chain: list[int] = []
        while block != 0 and len(chain) <= len(twins):
            chain.append(block)
            block = twins[block]
        if sorted(chain) != blocks_of[key]:
            raise Violation(PREFIX_MAP, step, None, f"finds blocks {chain[:5]} for content that is in {blocks_of[key]}")
    _check_searches(r, step)
    _check_registered(r, step)


def _check_off_the_map(r: Replica, step: int) -> int:
    """Blocks off the map hold content of one request's own that nobody can ask for again; returns how many they are."""
    keys = r.pool.blocks["key"]
    named = keys[(r.pool.blocks["twin"] == OFF_MAP) & (keys != 0)].tolist()
    if len(set(named)) != len(named) or set(named) & set(keys[r.pool.blocks["twin"] != OFF_MAP].tolist()):
        raise Violation(PREFIX_MAP, step, None, "content that is kept off the map is in two blocks")
    own = {key: (request, index) for request, index, key in _own_keys(r) if r.progress["findable"][request]}
    asked = own.keys() & set(named)
    if asked:
        request, index = own[min(asked)]
        raise Violation(PREFIX_MAP, step, request, f"its block {index} is kept off the map though it may ask for it")
    return len(named)


def _own_keys(r: Replica) -> list[tuple[int, int, int]]:
    """(request, position, key) of registered blocks that running requests hold with content of their own."""
    found = []
    for request in _running(r):
        progress = r.progress[request]
        if r.limits.window_groups > 0:  # all of them are on the map
            continue
        for index in range(int(r.requests["content_blocks"][request]), int(progress["hashed"])):
            block = int(r.pool.table[progress["slot"], index])
            found.append((request, index, int(r.pool.blocks["key"][block])))
    return found


def _check_searches(r: Replica, step: int) -> None:
    """Open addressing: no empty place between where a key's search may begin and where it stands.

    Read off the map alone: every key must be reached by walking down from the place its own search starts at.
    """
    places = r.pool.places["key"]
    mask = len(places) - 1
    for place in np.flatnonzero(places != 0).tolist():
        key = int(places[place])
        i = _home(key, mask)
        while i != place:
            if places[i] == 0:
                raise Violation(PREFIX_MAP, step, None, f"content {key} cannot be found: its search ends before it")
            i = (i + 1) & mask


def _home(key: int, mask: int) -> int:
    """Where a search begins, in Python's unbounded integers (Knuth's multiplicative hashing)."""
    return ((((key ^ (key >> 31)) & 0x7FFFFFFF) * 2654435761) >> 15) & mask


def _check_registered(r: Replica, step: int) -> None:
    """A running request's first `hashed` blocks are registered, of windows' those that are kept, and each key names one
    content.
    """
    content: dict[int, tuple[int, int, int]] = {}
    keys = r.pool.blocks["key"].tolist()
    for request in _running(r):
        hashed = int(r.progress["hashed"][request])
        for group in range(r.limits.full_groups + r.limits.window_groups):
            row = row_of_group(r, request, group)
            for index in range(hashed):
                if index < len(row) and _sees_window(r, group) and (row[index] == 0 or not _kept(r, request, index)):
                    continue
                if index >= len(row) or keys[row[index]] == 0:
                    raise Violation(PREFIX_MAP, step, request, f"its block {index} counts as registered and is not")
                named = content_key(r, request, index, group)
                if content.setdefault(keys[row[index]], named) != named:
                    raise Violation(PREFIX_MAP, step, request, f"its block {index} is registered as other content")


def _kept(r: Replica, request: int, index: int) -> bool:
    """Whether block `index` is among those that the token after some kept prefix sees through a window."""
    size, window, every = r.limits.block_size, r.limits.window_tokens, r.limits.retention_blocks
    prompt = int(r.requests["prompt"][request])
    ends = [(prompt - 1) // size]
    if r.limits.hit_drop >= DROP_KEEPING_ENDS:
        ends = [max(ends[0] - 1, 0), max(prompt // size - 1, 0)]
    inner = [int(r.progress["junction"][request])]
    if every > 0:
        inner += [index // every * every, (index // every + 1) * every]
    ends += [end for end in inner if end > 0]
    beyond = int(r.limits.hit_drop != KEEP_HIT)  # to be found and given up, behind each such prefix
    seen = [range(max(end * size - window + 1, 0) // size, end + beyond) for end in ends]
    return r.limits.chunked_window or any(index in blocks for blocks in seen)
