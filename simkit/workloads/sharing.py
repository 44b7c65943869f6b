"""How much of the prompts an infinite prefix cache would find: the most that sharing can save."""

from dataclasses import dataclass

import numpy as np

from simkit.workloads.workload import I64, Workload


@dataclass(frozen=True)
class Sharing:
    """Hits of an infinite cache that starts empty and sees requests in order of arrival."""

    block_tokens: int
    blocks: int  # of all prompts together; an unfilled last one counts where the trace names those (`partial_block`)
    unique_blocks: int
    block_hit_rate: float  # 0 to 1, of `blocks`
    token_hit_rate: float  # 0 to 1, of all prompt tokens, those that no id covers included
    requests_hit: float  # 0 to 1, of requests: at least one block found
    requests_hit_beyond_first: float  # 0 to 1, of requests: more than the first block found


def ideal_sharing(workload: Workload) -> Sharing | None:
    """The prefix sharing that a workload's block ids allow; None when it has none.

    A block is found if it and all before it in its prompt are in the cache; one without an id never is. An unfilled
    last block counts with the tokens that it has.
    """
    prefixes = workload.prefixes
    if prefixes is None or len(prefixes.ids) == 0:
        return None
    prompt = workload.prompt_tokens.astype(np.int64)
    cover = -(-prompt // prefixes.block_tokens) if prefixes.partial_block == "ceil" else prompt // prefixes.block_tokens
    # ids beyond the prompt stand for the answer, which is not looked up
    named = np.minimum(np.diff(prefixes.start), cover)
    hits = hit_blocks(workload, named)
    hit_tokens = np.minimum(hits * prefixes.block_tokens, prompt)
    blocks = int(cover.sum())
    return Sharing(
        block_tokens=prefixes.block_tokens,
        blocks=blocks,
        unique_blocks=len(np.unique(prefixes.ids)),
        block_hit_rate=int(hits.sum()) / blocks if blocks else 0.0,
        token_hit_rate=float(hit_tokens.sum() / prompt.sum()),
        requests_hit=float((hits > 0).mean()),
        requests_hit_beyond_first=float((hits > 1).mean()),
    )


def hit_blocks(workload: Workload, named: I64) -> I64:
    """[n] blocks at the head of each prompt's first `named` ones that an earlier request has put into the cache."""
    prefixes = workload.prefixes
    assert prefixes is not None, "the caller looked"
    request = np.repeat(np.arange(len(workload)), np.diff(prefixes.start))
    place = np.arange(len(prefixes.ids)) - prefixes.start[request]
    _, dense = np.unique(prefixes.ids, return_inverse=True)
    first_user = np.full(int(dense.max()) + 1, len(workload), dtype=np.int64)
    np.minimum.at(first_user, dense, request)
    missed = first_user[dense] >= request
    # the head ends at the first miss: the lowest place missed, or all that is named
    head = named.copy()
    np.minimum.at(head, request[missed], place[missed])
    return head
