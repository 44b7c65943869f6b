"""What a mutant must not pass: run by pytest on a copy of the package, uncompiled, cheapest checks first.

Beside it, run.py has the schedules worked by hand in tests/engine run. None of this runs by itself.
"""

from pathlib import Path

import numpy as np
import pytest

from simkit.engine import vllm_v1
from simkit.engine.block_checks import content_key
from simkit.engine.checked_run import checked_run
from simkit.engine.checks import MOST_OVERTAKEN
from simkit.engine.histories import (
    History,
    crowded_history,
    drafted_history,
    random_history,
    stateful_history,
    windowed_history,
)
from simkit.engine.loop import IDLE, advance, iterate
from simkit.engine.prefix import longest_hit
from simkit.engine.recording import read_recording, replay
from simkit.engine.replica import new_replica
from simkit.engine.state import DEVICE_FREE, FCFS, FREE_BLOCKS, NEVER, Replica

TESTS = Path(__file__).resolve().parents[1]
RECORDINGS = (TESTS / "conformance" / "recordings", TESTS.parents[1] / "shared" / "golden")
LARGEST_RECORDING_BYTES = 100_000  # the two larger ones take ten seconds each, uncompiled


@pytest.mark.parametrize("seed", range(40))
def test_rules(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule after every step; and every look into the prefix cache finds what a search of all blocks finds."""

    def searched(r: Replica, request: int) -> tuple[int, int]:
        found = longest_hit(r, request)
        assert found[0] == _searched_hits(r, request)
        return found

    monkeypatch.setattr(vllm_v1, "longest_hit", searched)
    checked_run(random_history(seed), iterate)


@pytest.mark.parametrize("seed", range(10))
def test_rules_of_windows(seed: int) -> None:
    checked_run(windowed_history(seed), iterate)


@pytest.mark.parametrize("seed", range(20))
def test_rules_of_states(seed: int) -> None:
    checked_run(stateful_history(seed), iterate)


@pytest.mark.parametrize("seed", range(30))
def test_rules_of_drafts(seed: int) -> None:
    checked_run(drafted_history(seed), iterate)


def _searched_hits(r: Replica, request: int) -> int:
    """Leading whole blocks, but for the one with the last token, whose content some block is registered for."""
    keys = {int(key) for key in r.pool.blocks["key"] if key != 0}
    hits = 0
    for index in range((int(r.progress["known"][request]) - 1) // r.limits.block_size):
        content, position, _ = content_key(r, request, index)
        named = content * r.limits.content_span + position + 1 if content >= 0 else None
        key = named if named is not None else -((request << 24) + index + 1)
        if key not in keys:
            break
        hits += 1
    return hits


@pytest.mark.parametrize("seed", range(60))
def test_counted_blocks(seed: int) -> None:
    """Blocks that get their numbers when it matters: the ledger is that of blocks that have them from the start."""
    history = random_history(seed, caching=True)
    requests = history.requests.copy().view(np.recarray)
    requests["content_blocks"] = 0
    ledgers = []
    for named in (True, False):
        r = new_replica(history.limits, requests, np.zeros(0, np.int64), history.aborts, history.num_blocks, 64, named)
        for _ in range(20_000):
            if advance(r, history.tables, NEVER, 1) == IDLE:
                break
        else:
            raise AssertionError("does not end")
        ledgers.append((r.ledger.tobytes(), r.progress["hit"].tolist(), r.pool.counts[FREE_BLOCKS]))
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize("seed", [seed for seed in range(40) if not stateful_history(seed).limits.prefix_caching])
def test_counted_states(seed: int) -> None:
    """The same of blocks for states, and all are free in the end."""
    history = stateful_history(seed)
    ledgers = []
    for named in (True, False):
        rows, blocks = history.requests.copy().view(np.recarray), history.num_blocks
        r = new_replica(history.limits, rows, history.content_ids, history.aborts, blocks, 64, named)
        assert advance(r, history.tables, NEVER, 20_000) == IDLE
        assert r.pool.counts[FREE_BLOCKS] == blocks - 1
        ledgers.append(r.ledger.tobytes())
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize("seed", range(2))
def test_nobody_starves(seed: int) -> None:
    checked_run(crowded_history(seed), iterate, MOST_OVERTAKEN)


def _size(path: Path) -> int:
    return path.stat().st_size


RECORDED = [
    path for folder in RECORDINGS for path in folder.glob("*.jsonl.gz") if _size(path) < LARGEST_RECORDING_BYTES
]


@pytest.mark.parametrize("path", sorted(RECORDED, key=_size), ids=lambda path: path.name)
def test_recordings(path: Path) -> None:
    assert replay(read_recording(path)) is None


def test_a_small_cache_is_never_faster() -> None:
    for seed in range(30):
        history = random_history(seed, caching=False)
        if history.limits.ordering != FCFS or len(history.aborts):
            continue
        ample = History(**{**vars(history), "num_blocks": 100_000})
        assert _end(history) >= _end(ample) - 100 * len(history.requests), seed


def _end(history: History) -> int:
    r = history.replica()
    assert advance(r, history.tables, NEVER, 20_000) == IDLE
    return int(r.at[DEVICE_FREE])
