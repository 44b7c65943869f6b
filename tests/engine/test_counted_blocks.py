"""Blocks that are only counted until it matters which they are: nobody can tell from the outside."""

from collections.abc import Callable

import numpy as np
import pytest

from simkit.engine.block_checks import check_blocks, check_cache, check_tables
from simkit.engine.discipline import DISCIPLINES, engine, minds_blocks
from simkit.engine.histories import History, random_history
from simkit.engine.loop import IDLE, advance
from simkit.engine.replica import new_replica
from simkit.engine.state import FREE_BLOCKS, NAMED, NEVER, Replica
from simkit.models.steptables import StepTables

MOST_TURNS = 100_000
Advance = Callable[[Replica, StepTables, int, int], int]


def _without_content(seed: int) -> History:
    history = random_history(seed)
    requests = history.requests.copy()
    requests["content_blocks"] = 0
    return History(**{**vars(history), "requests": requests.view(np.recarray), "content_ids": np.zeros(0, np.int64)})


def _replica(history: History, named: bool) -> Replica:
    return new_replica(
        history.limits,
        history.requests.copy().view(np.recarray),
        history.content_ids,
        history.aborts,
        history.num_blocks,
        event_capacity=4096,
        named=named,
    )


def _served(history: History, named: bool, run: Advance) -> Replica:
    r = _replica(history, named)
    assert run(r, history.tables, NEVER, MOST_TURNS) == IDLE
    return r


@pytest.mark.parametrize("name", DISCIPLINES)
def test_schedules_are_those_of_named_blocks(name: str) -> None:
    """400 random histories; from the first preemption on, where there is a prefix cache, blocks have names."""
    preempted, renamed = 0, 0
    run = engine(name).advance
    for seed in range(400):
        history = _without_content(seed)
        named, counted = (_served(history, how, run) for how in (True, False))
        for part in ("ledger", "at", "running", "waiting", "tenants"):
            assert getattr(counted, part).tobytes() == getattr(named, part).tobytes(), (seed, part)
        for part in ("itl", "batch_requests", "batch_tokens", "series", "events"):
            assert getattr(counted.record, part).tobytes() == getattr(named.record, part).tobytes(), (seed, part)
        for field in ("known", "computed", "preemptions", "hit", "status", "held", "hashed"):
            assert (counted.progress[field] == named.progress[field]).all(), (seed, field)
        assert counted.pool.counts[FREE_BLOCKS] == named.pool.counts[FREE_BLOCKS] == history.num_blocks - 1
        preempted += int(named.progress["preemptions"].any())
        renamed += int(counted.pool.counts[NAMED])
        assert counted.pool.counts[NAMED] == (history.limits.prefix_caching and named.progress["preemptions"].any())
    if name in ("vllm-v1", "vllm-v0", "sarathi"):  # the others set aside what an answer may need
        assert preempted > 100
        assert renamed > 50


def test_blocks_keep_every_rule_once_they_have_names() -> None:
    """After each turn from the first preemption on: tables, references, free queue and cache of content are sound."""
    checked = 0
    for seed in range(120):
        history = _without_content(seed)
        if not history.limits.prefix_caching:
            continue
        counted, named = _replica(history, False), _replica(history, True)
        for step in range(MOST_TURNS):
            over = [advance(r, history.tables, NEVER, 1) for r in (counted, named)]
            assert counted.pool.counts[FREE_BLOCKS] == named.pool.counts[FREE_BLOCKS]
            if counted.pool.counts[NAMED]:
                for check in (check_tables, check_blocks, check_cache):
                    check(counted, step)
                checked += 1
            assert over[0] == over[1]
            if over[0] == IDLE:
                break
    assert checked > 300


def test_who_minds_blocks() -> None:
    """Workloads that name content, and disciplines of one's own, which may look at the block table."""
    nothing, something = np.zeros(0, np.int64), np.ones(3, np.int64)
    assert not minds_blocks("vllm-v1", nothing)
    assert minds_blocks("vllm-v1", something)
    assert minds_blocks("mine.py", nothing)
