"""Layers that keep a state: where a prompt's chunks end, so that states of whole blocks are there to be cached.

A state is cached only as a chunk leaves it, so chunks end with blocks (vLLM's mamba_cache_mode "align"). Some kernels
leave two: where a chunk ends, and where its last whole block did; a prompt's last chunk then is not cut.
"""

from simkit.compiled import called, inlined
from simkit.engine.prefix import block_key
from simkit.engine.state import CHUNKS_BEFORE_END, CHUNKS_TO_LAST, STATE_FROM, STATE_STEP, STEPS, Replica
from simkit.engine.windows import columns, stays_cached


@called
def to_kept_state(r: Replica, request: int, start: int, tokens: int) -> int:
    """Of `tokens` that a request could be given after `start`, how many it gets; 0: none in this step.

    vLLM Scheduler._mamba_block_aligned_split, without drafts and with hashes of whole blocks.
    """
    limits, progress = r.limits, r.progress[request]
    size = limits.block_size
    prefill_end = max(progress.prompt, progress.known - 1)
    if start >= prefill_end:
        return tokens
    last = (progress.known - (1 if limits.state_chunks >= CHUNKS_BEFORE_END else 0)) // size * size
    end = start + tokens
    inside = start % size != 0
    # inside a block it ends with that, wherever the last is
    if limits.state_checkpoints and end >= prefill_end and (prefill_end - 1) // size > start // size:
        last = 0
    if limits.state_chunks == CHUNKS_TO_LAST:
        if end < last:
            end = end // size * size
    elif end < prefill_end:
        reach = limits.max_num_batched_tokens
        if limits.long_prefill_token_threshold > 0:
            reach = min(reach, limits.long_prefill_token_threshold)
        if end // size * size > start or size <= reach:
            end = end // size * size
    junction = progress.junction * size
    stop = end
    if inside and start < (start // size + 1) * size < stop:
        stop = (start // size + 1) * size
    if start < last < stop:
        stop = last
    if start < junction < stop:
        stop = junction
    return int(max(stop - start, 0))


@called
def is_being_kept(r: Replica, row: int, request: int, hits: int) -> bool:
    """Whether the state that a hit of `hits` blocks ends with is left by a chunk of this very step, so not there yet.

    vLLM MambaManager.cached_blocks_this_step, for which whoever finds it waits.
    """
    if hits == 0:
        return False
    key = block_key(r, request, hits - 1)
    for k in range(r.batches[row].length):
        other = r.entries[row, k].request
        if block_key(r, other, hits - 1) == key and _keeps(r, row, k, hits - 1) and _has_state(r, other, hits - 1):
            return True
    return False


@inlined
def _keeps(r: Replica, row: int, k: int, index: int) -> bool:
    """Whether a share of this step has the state after block `index` registered."""
    entry = r.entries[row, k]
    progress = r.progress[entry.request]
    if index >= progress.hashed or not stays_cached(r.limits, progress.prompt, progress.junction, index):
        return False
    if r.limits.state_chunks == CHUNKS_BEFORE_END:
        # told again as long as the prompt's last one is there (MambaManager._cache_partial_tail_block)
        whole = min(entry.before + entry.tokens, progress.known) // r.limits.block_size
        if index + 1 == whole == (progress.prompt - 1) // r.limits.block_size:
            return True
    marks = r.pool.table[progress.slot]
    return bool(marks[STATE_STEP] == r.at[STEPS] + 1 and marks[STATE_FROM] <= index)


@inlined
def _has_state(r: Replica, request: int, index: int) -> bool:
    """Whether a running request has a state in block `index` of its rows."""
    group = 0 if r.limits.windows_first else r.limits.full_groups
    return bool(r.pool.table[r.progress[request].slot, group * columns(r.limits, r.pool) + index] != 0)
