"""What must hold of the compiled engine, on random histories: after every turn on some, at the end on many."""

import os

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simkit.engine.checked_run import checked_run
from simkit.engine.checks import MOST_OVERTAKEN, check_end
from simkit.engine.histories import History, crowded_history, random_history
from simkit.engine.loop import IDLE, advance, iterate
from simkit.engine.state import (
    COMPUTED_TOKENS,
    DEVICE_FREE,
    FCFS,
    FINISHED,
    FREE_BLOCKS,
    NEVER,
    PREFILL,
    REDONE_TOKENS,
    UNFINISHED,
    Replica,
)

SEEDS = st.integers(0, 2**32)
TURNS = 20_000  # no history needs a tenth of it: more is a livelock
HISTORIES = int(os.environ.get("SIMKIT_HISTORIES", "10000"))  # more on demand
many = settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck))


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_every_rule_holds_after_every_turn(seed: int) -> None:
    checked_run(random_history(seed), iterate)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_nobody_starves_in_an_overload(seed: int) -> None:
    checked_run(crowded_history(seed), iterate, MOST_OVERTAKEN)


def run(history: History) -> Replica:
    r = history.replica()
    assert advance(r, history.tables, NEVER, TURNS) == IDLE
    return r


@many
@given(SEEDS)
def test_every_request_ends_and_everything_is_given_back(seed: int) -> None:
    """At the end: all requests, all tokens, all blocks, all of everybody's time; batches held what it took."""
    history = random_history(seed)
    r = run(history)
    check_end(r)
    ended = r.progress["status"] == FINISHED
    assert np.all((r.ledger["first_token"] > r.ledger["scheduled"])[ended])
    tokens = r.record.batch_tokens
    steps_of_size = r.record.batch_requests
    assert int((np.arange(len(tokens)) * tokens).sum()) == r.at[COMPUTED_TOKENS]
    assert steps_of_size.sum() == tokens.sum()
    assert steps_of_size[0] == tokens[0] == 0
    # every token but the last of each request is computed once, unless it was cached, lost or never waited for
    done = ended & (r.progress["preemptions"] == 0)
    least = (r.progress["known"] - 1 - r.progress["hit"])[done].sum()
    assert r.at[COMPUTED_TOKENS] >= least
    if done.all():
        wasted = (history.limits.pipeline_depth - 1) * len(done)
        assert r.at[COMPUTED_TOKENS] <= least + wasted
        assert r.at[REDONE_TOKENS] == 0


@many
@given(SEEDS)
def test_no_livelock_when_memory_just_fits_one_request(seed: int) -> None:
    history = random_history(seed)
    needed = -(-history.limits.max_model_len // history.limits.block_size)
    r = run(History(**{**vars(history), "num_blocks": 1 + needed}))
    assert r.at[UNFINISHED] == 0
    assert r.pool.counts[FREE_BLOCKS] == needed
    assert PREFILL not in r.ledger["phase"]


def test_a_small_cache_is_never_faster() -> None:
    """Makespan with little memory is at least that with ample memory, which a recompute bug once turned around."""
    slower = 0
    for seed in range(400):
        history = random_history(seed, caching=False)
        if history.limits.ordering != FCFS or len(history.aborts):
            continue
        ample = History(**{**vars(history), "num_blocks": 100_000})
        small_end, ample_end = run(history).at[DEVICE_FREE], run(ample).at[DEVICE_FREE]
        # steps cost a constant beside their tokens, so postponed work can merge into fewer steps: allow one step's
        # worth of such luck a request, never the factor that a wrong recompute gives
        luck = 100 * len(history.requests)
        assert small_end >= ample_end - luck, seed
        slower += bool(small_end > ample_end)
    assert slower > 10
