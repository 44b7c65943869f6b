"""Requests that begin with the same text, as block ids: a system prompt, a document, a tool description."""

from collections.abc import Sequence

import numpy as np

from simkit.workloads.table import ranges
from simkit.workloads.workload import I64, Prefixes

BLOCK_TOKENS = 16  # vLLM's default block size: the finest sharing an engine can make use of


def group_prefixes(group: Sequence[str | None], prefix_tokens: I64) -> Prefixes | None:
    """Block ids of prompts whose first `prefix_tokens[i]` tokens are those of their `group[i]`; None if none has any.

    Only whole blocks are shared, so a prefix of 100 tokens gives 6 ids of 16. Ids are dense, from 0.
    """
    blocks = np.where([name is None for name in group], 0, prefix_tokens // BLOCK_TOKENS).astype(np.int64)
    longest: dict[str, int] = {}
    for name, count in zip(group, blocks.tolist(), strict=True):
        if name is not None:
            longest[name] = max(longest.get(name, 0), count)
    first, total = {}, 0
    for name, count in longest.items():
        first[name], total = total, total + count
    if total == 0:
        return None
    start = np.array([first.get(name, 0) if name is not None else 0 for name in group], dtype=np.int64)
    return Prefixes(BLOCK_TOKENS, np.concatenate(([0], np.cumsum(blocks))), ranges(start, blocks))
