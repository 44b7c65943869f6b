"""KV blocks of models whose layers see windows: every rule on random histories, and a few worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkit.engine.block_checks import check_blocks, check_windows, row_of_group
from simkit.engine.checked_run import checked_run
from simkit.engine.histories import windowed_history
from simkit.engine.interpreted import interpreted
from simkit.engine.loop import IDLE, advance, iterate
from simkit.engine.replica import new_replica
from simkit.engine.selftest import state_bytes
from simkit.engine.state import ABORT, FREE_BLOCKS, NEVER, REQUEST, RUNNING_COUNT, Limits, Replica, records
from simkit.engine.violation import Violation
from simkit.models.steptables import constant_tables

TABLES = constant_tables(64, 4, token_ns=10.0, step_ns=100.0)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_every_rule_holds_after_every_turn(seed: int) -> None:
    checked_run(windowed_history(seed), iterate)


def test_machine_code_and_plain_python_do_the_same() -> None:
    for seed in (*range(7), 27):  # in the last two a request comes back for content of its own
        history = windowed_history(seed)
        one, other = history.replica(), history.replica()
        assert advance(one, history.tables, NEVER, 20_000) == IDLE
        assert interpreted().loop.advance(other, history.tables, NEVER, 20_000) == IDLE
        assert state_bytes(one) == state_bytes(other)


def replica(prompt: int, output: int, blocks: int = 100, requests: int = 1, **limits: object) -> Replica:
    """Requests of `prompt` tokens: layers of one group see all of them, those of two others 8; blocks of 4."""
    rows = records(requests, REQUEST)
    rows["prompt"], rows["output"], rows["max_tokens"], rows["deadline_ns"] = prompt, output, output, NEVER
    rows["content_blocks"] = prompt // 4 if limits.get("prefix_caching") else 0
    fixed = {"max_num_batched_tokens": 64, "max_running": 4, "max_model_len": 256, "block_size": 4}
    windows = {"full_groups": 1, "window_groups": 2, "windows_first": True, "window_tokens": 8}
    made = Limits(**{**fixed, **windows, **limits})  # type: ignore[arg-type]
    return new_replica(made, rows, np.arange(64, dtype=np.int64), records(0, ABORT), blocks, event_capacity=8)


def held(r: Replica) -> list[int]:
    """Blocks of request 0 in each group."""
    return [sum(block != 0 for block in row_of_group(r, 0, group)) for group in range(3)]


def test_a_window_keeps_its_last_blocks_and_the_others_all() -> None:
    """After 64 prompt tokens, token 64 sees tokens 57 and on: blocks 14 and 15, and its own."""
    r = replica(64, 40)
    iterate(r, TABLES)
    assert held(r) == [16, 16, 16]
    iterate(r, TABLES)
    assert held(r) == [3, 3, 17]
    assert r.pool.counts[FREE_BLOCKS] == 99 - 23


def test_a_chunk_is_given_back_when_the_next_begins() -> None:
    """Of chunks of 8: token 64 begins one and sees nothing before it."""
    r = replica(64, 40, chunked_window=True)
    iterate(r, TABLES)
    iterate(r, TABLES)
    assert held(r) == [1, 1, 17]


def test_what_a_step_in_flight_reads_stays() -> None:
    """Two batches in flight, the prompt's 64 tokens still being computed: they are given back one step later."""
    early, late = (replica(64, 40, pipeline_depth=2, frees_settled=settled) for settled in (False, True))
    for r in (early, late):
        iterate(r, TABLES)
        iterate(r, TABLES)
    assert held(early) == [3, 3, 17]
    assert held(late) == [17, 17, 17]
    iterate(late, TABLES)
    assert held(late) == [3, 3, 17]


@pytest.mark.parametrize(("cap", "admitted"), [(0, 1), (11, 2)])
def test_admission_asks_for_no_more_than_a_window_ever_holds(cap: int, admitted: int) -> None:
    """Of 89 blocks the first request, decoding, holds 25 + 2 x 3. The second needs 3 x 24 by its whole context, and
    24 + 2 x 11 where a window's group counts what it holds at most: 7 tokens before a step's 32, and a block."""
    r = replica(96, 4, blocks=90, requests=2, max_num_batched_tokens=32, window_cap_blocks=cap)
    for _ in range(3):
        iterate(r, TABLES)
    assert r.at[RUNNING_COUNT] == 1
    iterate(r, TABLES)
    assert r.at[RUNNING_COUNT] == admitted


def test_a_hit_needs_the_window_only_and_every_block_of_full_attention() -> None:
    """The first request's windows have passed its blocks, which lie in the free queue; the second finds them."""
    r = replica(64, 8, requests=2, prefix_caching=True)
    r.requests["arrival_ns"][1] = 10**6
    assert advance(r, TABLES, NEVER, 1000) == IDLE
    assert r.progress["hit"][1] == 60  # all but the block of the last token
    # block 13 of full attention is gone: 52 tokens are left, and the window before them was kept
    r = replica(64, 8, requests=2, prefix_caching=True)
    r.requests["arrival_ns"][1] = 10**6
    advance(r, TABLES, 10**5, 1000)
    interpreted().prefix.unregister(r.pool, interpreted().prefix.cached_block(r.pool, 13 * 3 + 2 + 1))
    advance(r, TABLES, NEVER, 1000)
    assert r.progress["hit"][1] == 52


@pytest.mark.parametrize(
    ("retention", "ends"),
    [
        (0, [60]),  # the longest prefix that the same prompt asks for: its last token is computed again
        (1, [*range(4, 72, 4)]),  # all
        (4, [16, 32, 48, 60, 64]),
    ],
)
def test_windows_keep_the_prefixes_that_are_kept(retention: int, ends: list[int]) -> None:
    """After 64 prompt tokens and 8 more, at blocks of 4: which prefixes another request finds, were it to end there."""
    r = replica(64, 8, prefix_caching=True, retention_blocks=retention)
    r.requests["content_blocks"] = 18
    assert advance(r, TABLES, NEVER, 1000) == IDLE
    hit = interpreted().prefix.hit_in_groups
    assert [tokens for tokens in range(4, 72, 4) if hit(r, 0, tokens)[0] * 4 == tokens] == ends


def test_a_prefix_that_windows_lost_is_kept_once_it_was_asked_for() -> None:
    """Three prompts share 32 tokens, of which windows keep none at first: the second computes all and keeps them."""
    r = replica(64, 1, requests=3, prefix_caching=True, retention_blocks=0)
    r.requests["arrival_ns"] = [0, 10**6, 2 * 10**6]
    r.requests["first_content"] = [0, 16, 32]
    for other in (16, 32):
        r.content_ids[other : other + 8] = r.content_ids[:8]
    assert advance(r, TABLES, NEVER, 1000) == IDLE
    assert r.progress["hit"].tolist() == [0, 0, 32]


def test_a_leak_and_a_loss_are_found_in_any_group() -> None:
    for group in range(3):
        r = replica(64, 40)
        iterate(r, TABLES)
        iterate(r, TABLES)
        check_blocks(r, 1)
        check_windows(r, 0, 64, 64, 1)
        place = group * (r.pool.table.shape[1] // 3) + 16
        slot = r.progress["slot"][0]
        block = int(r.pool.table[slot, place])
        r.pool.table[slot, place] = 0  # the row forgets a block that it holds
        with pytest.raises(Violation):
            check_blocks(r, 1)
        with pytest.raises(Violation, match="gave back a block"):
            check_windows(r, 0, 64, 64, 1)
        r.pool.table[slot, place] = block
    with pytest.raises(Violation, match="keeps a block"):
        check_windows(r, 0, 64, 75, 1)
