"""What must hold for every discipline under every ordering, on random histories."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkit.engine.discipline import DISCIPLINES, Engine, engine
from simkit.engine.histories import History, random_history
from simkit.engine.interpreted import Interpreted, uncompiled
from simkit.engine.loop import IDLE
from simkit.engine.settings import ORDERINGS
from simkit.engine.state import (
    ABORTED,
    ADMITTED,
    DECODE,
    DEVICE_FREE,
    FINISHED,
    FLUSH,
    FREE_BLOCKS,
    IN_FLIGHT,
    NEVER,
    NEXT_ARRIVAL,
    NOW,
    OLDEST,
    PREEMPTED_NOW,
    ROWS,
    RUNNING_COUNT,
    SUM_DECODE,
    SUM_EXTRA,
    SUM_HOST,
    UNFINISHED,
    Replica,
)

OTHERS = [name for name in DISCIPLINES if name != "vllm-v1"]  # which has tests of its own
TURNS = 20_000  # no history needs a tenth of it: more is a livelock
SEEDS = st.integers(0, 2**32)


def history_for(name: str, seed: int, ordering: int | None = None, **changes: object) -> History:
    """A random history, with swapping on odd seeds for the discipline that has it."""
    history = random_history(seed)
    limits = history.limits._replace(**changes)
    if ordering is not None:
        limits = limits._replace(ordering=ordering)
    if name == "vllm-v0" and seed % 2:
        limits = limits._replace(swap_block_ns=40)
    return History(**{**vars(history), "limits": limits})


def turns(loop: Engine, history: History) -> Iterator[tuple[Replica, int]]:
    """A replica and the row of the step it planned last, after each turn until nothing is left to do."""
    r = history.replica()
    for _ in range(TURNS):
        if r.at[UNFINISHED] == 0 and r.at[IN_FLIGHT] == 0 and r.at[FLUSH] == 0:
            if r.at[NEXT_ARRIVAL] == r.at[ROWS]:
                return
            r.at[NOW] = max(r.at[NOW], r.requests["arrival_ns"][r.at[NEXT_ARRIVAL]])
        planned = int((r.at[OLDEST] + r.at[IN_FLIGHT]) % 2)
        loop.iterate(r, history.tables)
        yield r, planned
    raise AssertionError(f"livelock: {r.at[UNFINISHED]} requests unfinished after {TURNS} turns")


def check_blocks(r: Replica) -> None:
    """Every block is free once or held by as many running requests as it counts; nobody else holds any."""
    held: list[int] = []
    for request in r.running[: r.at[RUNNING_COUNT]]:
        progress = r.progress[request]
        held += r.pool.table[progress.slot, : progress.held].tolist()
        assert progress.held * r.limits.block_size >= progress.computed
    references = np.bincount(held, minlength=len(r.pool.blocks))
    assert references.tolist() == r.pool.blocks["references"].tolist()
    queue, block = [], int(r.pool.blocks["after"][0])
    while block != 0:
        queue.append(block)
        assert len(queue) <= len(r.pool.blocks)
        block = int(r.pool.blocks["after"][block])
    assert sorted(queue) == [b for b in range(1, len(references)) if references[b] == 0]
    assert len(queue) == r.pool.counts[FREE_BLOCKS]


def check_batch(r: Replica, row: int) -> None:
    """The budget is kept, nobody is served twice, and the order is that of `running`, as the ledger needs it."""
    entries = r.entries[row, : r.batches["length"][row]]
    assert int(entries["tokens"].sum()) <= r.limits.max_num_batched_tokens
    assert len(set(entries["request"].tolist())) == len(entries) <= r.limits.max_running
    assert np.all(entries["tokens"] >= 1)
    assert np.all(entries["before"] + entries["tokens"] <= r.limits.max_model_len)
    place = {int(request): i for i, request in enumerate(r.running[: r.at[RUNNING_COUNT]])}
    places = [place[q] for q in entries["request"].tolist() if q in place]
    assert places == sorted(places)


def check_end(history: History, r: Replica) -> None:
    """Everybody has ended, everything was given back, and each waterfall sums to its latency."""
    done = r.progress["status"] == FINISHED
    aborted = np.zeros(len(done), dtype=bool)
    aborted[history.aborts["request"]] = True
    assert np.all(done | (aborted & (r.progress["status"] == ABORTED)))
    assert r.pool.counts[FREE_BLOCKS] == history.num_blocks - 1
    assert not np.any(r.pool.blocks["references"])
    asked = history.requests["prompt"] + history.requests["output"]
    assert np.array_equal(r.progress["known"][done], np.minimum(asked, history.limits.max_model_len)[done])
    ledger = r.ledger[done]
    parts = [ledger[name] for name in ("prefill", "decode", "stalled", "preempted", "host")]
    arrival = history.requests["arrival_ns"][done]
    queue = ledger["scheduled"] - arrival
    assert all(np.all(part >= 0) for part in (*parts, queue))
    assert np.array_equal(queue + sum(parts), ledger["finish"] - arrival)


@pytest.mark.parametrize("ordering", ORDERINGS)
@pytest.mark.parametrize("name", OTHERS)
def test_sound_after_every_turn_under_every_ordering(name: str, ordering: str) -> None:
    for seed in range(6):
        history = history_for(name, seed, ORDERINGS[ordering])  # type: ignore[index]
        r = history.replica()
        for r, row in turns(engine(name), history):
            check_blocks(r)
            check_batch(r, row)
            assert r.at[SUM_HOST] + r.at[SUM_DECODE] + r.at[SUM_EXTRA] == r.at[DEVICE_FREE]
        check_end(history, r)


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=300, deadline=None)
@given(seed=SEEDS)
def test_everybody_ends_and_every_nanosecond_is_accounted_for(name: str, seed: int) -> None:
    history = history_for(name, seed)
    r = history.replica()
    assert engine(name).advance(r, history.tables, NEVER, TURNS) == IDLE
    check_end(history, r)


@pytest.mark.parametrize("name", OTHERS)
def test_interpreted_equals_compiled_bit_for_bit(interpreted: Interpreted, name: str) -> None:
    with uncompiled():
        plain = interpreted.discipline.engine(name)
    for seed in range(4):
        history = history_for(name, seed)
        first, second = history.replica(), history.replica()
        assert engine(name).advance(first, history.tables, NEVER, TURNS) == IDLE
        assert plain.advance(second, history.tables, NEVER, TURNS) == IDLE
        for field in ("progress", "ledger", "batches", "running", "tenants", "at"):
            assert getattr(first, field).tobytes() == getattr(second, field).tobytes(), (seed, field)
        assert first.pool.blocks.tobytes() == second.pool.blocks.tobytes()


@pytest.mark.parametrize("name", DISCIPLINES)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_no_discipline_sees_how_long_answers_will_be(name: str, seed: int) -> None:
    """Two histories that differ in true outputs only are scheduled alike until the first of them has a request end."""
    long = history_for(name, seed)
    long.requests["output"] = long.requests["max_tokens"]
    rng = np.random.default_rng(seed)
    requests = long.requests.copy()
    requests["output"] = rng.integers((requests["max_tokens"] + 1) // 2, requests["max_tokens"] + 1)
    short = History(**{**vars(long), "requests": requests})
    for (a, row), (b, _) in zip(turns(engine(name), long), turns(engine(name), short), strict=False):
        assert (
            a.entries[row, : a.batches["length"][row]].tolist() == b.entries[row, : b.batches["length"][row]].tolist()
        )
        if np.any(a.progress["status"] == FINISHED) or np.any(b.progress["status"] == FINISHED):
            return


@pytest.mark.parametrize("name", ["static", "orca"])
@settings(max_examples=100, deadline=None)
@given(seed=SEEDS)
def test_who_has_memory_for_everything_is_never_preempted(name: str, seed: int) -> None:
    history = history_for(name, seed, preemptive=False)
    r = history.replica()
    engine(name).advance(r, history.tables, NEVER, TURNS)
    assert not np.any(r.progress["preemptions"])


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_static_admits_nobody_to_a_batch_that_runs(seed: int) -> None:
    history = history_for("static", seed, preemptive=False)
    last = 0
    for r, row in turns(engine("static"), history):
        if r.at[ADMITTED] and int(r.batches["step"][row]) > last:
            last = int(r.batches["step"][row])
            assert r.batches["running"][row] == r.at[ADMITTED]


@pytest.mark.parametrize("name", ["vllm-v0", "sglang"])
@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_a_step_is_prompts_or_decodes(name: str, seed: int) -> None:
    history = history_for(name, 2 * seed, prefix_caching=False)
    for r, row in turns(engine(name), history):
        entries = r.entries[row, : r.batches["length"][row]]
        # one token is a decode unless it is all of a prompt
        decodes = (entries["tokens"] == 1) & (entries["before"] > 0)
        assert not (np.any(decodes) and np.any(entries["tokens"] > 1))


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_sarathi_never_leaves_a_decode_out(seed: int) -> None:
    history = history_for("sarathi", seed, pipeline_depth=1, preemptive=False)
    if history.limits.max_num_batched_tokens < history.limits.max_running or len(history.aborts):
        return
    decoding: set[int] = set()
    for r, row in turns(engine("sarathi"), history):
        if not r.at[PREEMPTED_NOW]:
            assert decoding <= set(r.entries["request"][row, : r.batches["length"][row]].tolist())
        running = r.running[: r.at[RUNNING_COUNT]].tolist()
        decoding = {q for q in running if r.progress["phase"][q] == DECODE}
