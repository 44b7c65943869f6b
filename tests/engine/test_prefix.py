"""The prefix cache against a search of all blocks."""

from types import SimpleNamespace

import pytest

from simkit.engine.histories import random_history
from simkit.engine.state import NEVER, Replica


def searched_hit(interpreted: SimpleNamespace, r: Replica, request: int) -> tuple[int, int]:
    """The longest run of leading blocks whose content some block holds, and how many of the blocks found are free."""
    keys = r.pool.blocks["key"].tolist()
    hits = idle = 0
    # the last token is always computed again
    for index in range((int(r.progress[request].known) - 1) // r.limits.block_size):
        key = interpreted.prefix.block_key(r, request, index)
        holders = [block for block, held in enumerate(keys) if held == key]
        if not holders:
            break
        hits += 1
        idle += all(r.pool.blocks["references"][block] == 0 for block in holders)
    return hits, idle


@pytest.mark.parametrize("seed", range(60))
def test_hits_equal_a_search_of_all_blocks(
    interpreted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    history = random_history(seed, caching=True)
    found = interpreted.prefix.longest_hit
    compared = []

    def checked(r: Replica, request: int) -> tuple[int, int]:
        hits, idle = found(r, request)
        expected, most_idle = searched_hit(interpreted, r, request)
        assert hits == expected
        # of twins the first is taken, which may be free while another is in use
        assert idle >= most_idle
        compared.append(hits)
        return hits, idle

    monkeypatch.setattr(interpreted.vllm_v1, "longest_hit", checked)
    interpreted.loop.advance(history.replica(), history.tables, NEVER, 10**6)
    assert compared
