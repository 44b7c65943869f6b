"""Which blocks a model whose layers see windows keeps: the rules of vLLM's hybrid KV cache manager.

Layers are dealt to groups of equally many (simkit.models.kv_groups). A request has a row of blocks in each group, all
equally long and side by side in its row of the table; all are taken from one pool. In a group whose layers see a
window, a block that no later token can see is given back and its place in the row is 0.
"""

from simkit.compiled import inlined
from simkit.engine.state import Limits, Pool


@inlined
def groups_of(limits: Limits) -> int:
    """Rows of blocks that a request has."""
    return limits.full_groups + limits.window_groups


@inlined
def columns(limits: Limits, pool: Pool) -> int:
    """Columns of the table from one group's row to the next; 0 where there is one."""
    return 0 if groups_of(limits) == 1 else pool.table.shape[1] // groups_of(limits)


@inlined
def sees_window(limits: Limits, group: int) -> bool:
    """Whether a group's layers see a window."""
    return bool(group < limits.window_groups if limits.windows_first else group >= limits.full_groups)


@inlined
def blocks_behind(limits: Limits, tokens: int) -> int:
    """Leading blocks that no token after the first `tokens` sees through a window (vLLM get_num_skipped_tokens)."""
    if limits.chunked_window:
        return tokens // limits.window_tokens * limits.window_tokens // limits.block_size
    return max(0, tokens - limits.window_tokens + 1) // limits.block_size


@inlined
def blocks_at_admission(limits: Limits, tokens: int, hits: int) -> int:
    """New blocks for `tokens` tokens, `hits` blocks being cached; in a window's group no more than it ever holds
    (vLLM >= 0.20 max_admission_blocks_per_request).
    """
    blocks = (min(tokens, limits.max_model_len) + limits.block_size - 1) // limits.block_size
    seen = min(blocks, limits.window_cap_blocks) if limits.window_cap_blocks > 0 else blocks
    return limits.full_groups * max(blocks - hits, 0) + limits.window_groups * max(seen - hits, 0)
