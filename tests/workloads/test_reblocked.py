"""Content ids for blocks of another size, against prefixes compared token by token."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simkit.workloads.reblocked import reblocked
from simkit.workloads.workload import Prefixes


def common(a: list[int], b: list[int]) -> int:
    """Leading entries that two lists share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def named(prompts: list[list[int]], block_tokens: int) -> Prefixes:
    """Ids of the whole blocks of each prompt, chained: equal where all tokens up to their end are."""
    known: dict[tuple[int, ...], int] = {}
    ids, start = [], [0]
    for prompt in prompts:
        ends = range(block_tokens, len(prompt) + 1, block_tokens)
        ids += [known.setdefault(tuple(prompt[:end]), 7 * len(known) + 3) for end in ends]
        start.append(len(ids))
    return Prefixes(block_tokens, np.array(start, np.int64), np.array(ids, np.int64), "floor")


PROMPTS = st.lists(st.lists(st.integers(0, 1), max_size=40), min_size=1, max_size=8)


@given(prompts=PROMPTS, own=st.integers(1, 12), block_tokens=st.integers(1, 12))
def test_what_two_requests_share_is_found_and_no_more(prompts: list[list[int]], own: int, block_tokens: int) -> None:
    before = named(prompts, own)
    after = reblocked(before, block_tokens)
    assert after.block_tokens == block_tokens

    def rows(prefixes: Prefixes) -> list[list[int]]:
        return [prefixes.ids[a:b].tolist() for a, b in zip(prefixes.start, prefixes.start[1:], strict=False)]

    old, new = rows(before), rows(after)
    for i, mine in enumerate(new):
        assert len(mine) == len(old[i]) * own // block_tokens
        assert len(set(mine)) == len(mine)
        for j, other in enumerate(new):
            shared = common(mine, other)
            assert shared == common(old[i], old[j]) * own // block_tokens
            assert shared * block_tokens <= common(prompts[i], prompts[j])
            # nowhere else is anything taken for the same
            assert not set(mine[shared:]) & set(other[shared:]) or i == j
