"""A workload's content ids for blocks of another size than its own."""

import numpy as np

from simkit.workloads.workload import I64, Prefixes


def reblocked(prefixes: Prefixes, block_tokens: int) -> Prefixes:
    """The same prefixes with an id for each block of `block_tokens` tokens that lies within blocks that have one.

    Ids are prefix-chained, so a block is named by its place and by the id of the block in which it ends: where two
    requests part inside that one, they are taken to part before it. So of a prefix that is shared up to block k of the
    workload's own as many tokens are found as whole new blocks fit in, and never more.
    """
    own = prefixes.block_tokens
    counts = np.diff(prefixes.start)
    fewer = counts * own // block_tokens
    start: I64 = np.concatenate([[0], np.cumsum(fewer)])
    request = np.repeat(np.arange(len(counts)), fewer)
    place = np.arange(len(request), dtype=np.int64) - start[:-1][request]
    ends_in = ((place + 1) * block_tokens + own - 1) // own - 1
    ids = prefixes.ids[prefixes.start[:-1][request] + ends_in]
    if block_tokens < own:
        # several new blocks end in one of the workload's own: the place tells them apart
        order = np.lexsort((place, ids))
        new = np.ones(len(order), dtype=bool)
        new[1:] = (np.diff(ids[order]) != 0) | (np.diff(place[order]) != 0)
        named = np.empty(len(order), dtype=np.int64)
        named[order] = np.cumsum(new) - 1
        ids = named
    return Prefixes(block_tokens, start, ids, "floor" if prefixes.partial_block == "floor" else "ceil")
