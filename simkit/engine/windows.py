"""Which blocks a model whose layers see windows keeps: the rules of vLLM's hybrid KV cache manager.

Layers are dealt to groups of equally many (simkit.models.kv_groups). A request has a row of blocks in each group, all
equally long and side by side in its row of the table; all are taken from one pool. In a group whose layers see a
window, a block that no later token can see is given back and its place in the row is 0.
"""

from simkit.compiled import inlined
from simkit.engine.state import DROP_KEEPING_ENDS, KEEP_HIT, STATES_LOST, Limits, Pool, Records, columns_beside

_columns_beside = inlined(columns_beside)


@inlined
def groups_of(limits: Limits) -> int:
    """Rows of blocks that a request has."""
    return limits.full_groups + limits.window_groups


@inlined
def columns(limits: Limits, pool: Pool) -> int:
    """Columns of the table from one group's row to the next; 0 where there is one."""
    return 0 if groups_of(limits) == 1 else (pool.table.shape[1] - _columns_beside(limits)) // groups_of(limits)


@inlined
def sees_window(limits: Limits, group: int) -> bool:
    """Whether a group's layers see a window."""
    return bool(group < limits.window_groups if limits.windows_first else group >= limits.full_groups)


@inlined
def new_blocks(limits: Limits, count: int, states: int) -> int:
    """Blocks of the pool for `count` more in each row; where layers keep states, those of the last `states` alone."""
    if limits.state_chunks != STATES_LOST:
        return limits.full_groups * count + limits.window_groups * min(count, states)
    return groups_of(limits) * count


@inlined
def states_left(limits: Limits, progress: Records, start: int, tokens: int) -> int:
    """States that a chunk leaves which ends with the first `tokens` tokens: the last, and where kernels can tell it and
    it is kept, that of the last block before, too.

    vLLM MambaManager._needs_internal_checkpoint; where only prompts' ends are kept, a chunk that ends one.
    """
    size = limits.block_size
    # one that begins inside a block goes no further than its end
    if not limits.state_checkpoints or (tokens - 1) // size <= start // size:
        return 1
    return 2 if limits.retention_blocks != 0 or tokens >= max(progress.prompt, progress.known - 1) else 1


@inlined
def blocks_behind(limits: Limits, tokens: int) -> int:
    """Leading blocks that no token after the first `tokens` sees through a window (vLLM get_num_skipped_tokens)."""
    if limits.chunked_window:
        return tokens // limits.window_tokens * limits.window_tokens // limits.block_size
    return max(0, tokens - limits.window_tokens + 1) // limits.block_size


@inlined
def blocks_for_hit(limits: Limits) -> int:
    """Cached blocks in a row that fill what the token after them sees through a window."""
    return max(1, (limits.window_tokens - 2 + limits.block_size) // limits.block_size)


@inlined
def stays_cached(limits: Limits, prompt: int, junction: int, index: int) -> bool:
    """Whether prefix caching offers block `index` of a window's group to others, or to itself after a preemption.

    Where it does not keep all of them, it keeps what a prefix needs that ends with every so many blocks, with the
    `prompt` tokens of a request (but for its last token, which is computed again), and at a `junction`: where a request
    found that full attention knows its prefix and windows have lost it (vLLM >= 0.29 reachable_block_mask,
    prefix_cache_retention_interval; chunks keep all).
    """
    every = limits.retention_blocks
    if limits.chunked_window or every == 1:
        return True
    needed = blocks_for_hit(limits)
    end = (prompt - 1) // limits.block_size
    if limits.hit_drop != KEEP_HIT:
        return _stays_for_drop(limits, prompt, junction, index)
    return bool(
        (every > 0 and index % every >= every - needed)
        or end - needed <= index < end
        or junction - needed <= index < junction
    )


@inlined
def _stays_for_drop(limits: Limits, prompt: int, junction: int, index: int) -> bool:
    """The same where a hit gives up its last block: it must be there to be found, one past each prefix's end."""
    every = limits.retention_blocks
    needed = blocks_for_hit(limits) + 1
    again = (prompt - 1) // limits.block_size + 1
    on = again
    if limits.hit_drop >= DROP_KEEPING_ENDS:
        again = max(again - 1, 1)
        on = max(prompt // limits.block_size, 1)
    return bool(
        (every > 0 and (needed >= every or (index > 0 and (index - 1) % every >= every - needed)))
        or again - needed <= index < again
        or on - needed <= index < on
        or (junction > 0 and junction + 1 - needed <= index <= junction)
    )


@inlined
def blocks_at_admission(limits: Limits, tokens: int, hits: int) -> int:
    """New blocks for `tokens` tokens, `hits` blocks being cached; in a window's group no more than it ever holds
    (vLLM >= 0.20 max_admission_blocks_per_request).
    """
    blocks = (min(tokens, limits.max_model_len) + limits.block_size - 1) // limits.block_size
    if limits.state_chunks != STATES_LOST:
        return new_blocks(limits, max(blocks - hits, 0), 2 if limits.state_checkpoints else 1)
    seen = min(blocks, limits.window_cap_blocks) if limits.window_cap_blocks > 0 else blocks
    return limits.full_groups * max(blocks - hits, 0) + limits.window_groups * max(seen - hits, 0)
