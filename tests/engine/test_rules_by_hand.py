"""Rules that no recording brings out, worked by hand: what older versions do, and what seldom happens."""

import numpy as np
import pytest
from hand_worked import LIMITS, STEP_NS, Ask, Step, play

from simkit.engine.discipline import engine
from simkit.engine.interpreted import Interpreted
from simkit.engine.replica import new_replica
from simkit.engine.state import ABORT, NEVER, NOW, PRIORITY, REDONE_TOKENS, REQUEST, Limits, records
from simkit.models.steptables import constant_tables

CHUNKS = LIMITS._replace(long_prefill_token_threshold=5)


def _planned(discipline: str, limits: Limits, asks: list[Ask], blocks: int, steps: int) -> list[Step]:
    """The first batches in the order in which they are planned, also where one is planned while another runs."""
    rows = records(len(asks), REQUEST)
    for i, ask in enumerate(asks):
        rows[i] = (STEP_NS * ask.step, ask.prompt, ask.output, ask.output, ask.priority, ask.output, 0, NEVER, 0, 0)
    r = new_replica(limits, rows, np.zeros(0, dtype=np.int64), records(0, ABORT), blocks + 1)
    tables = constant_tables(limits.max_num_batched_tokens, limits.max_running, step_ns=float(STEP_NS))
    iterate = engine(discipline).iterate
    found: list[Step] = []
    for turn in range(steps):
        r.at[NOW] = STEP_NS * turn
        iterate(r, tables)
        row = turn % limits.pipeline_depth
        found.append(
            [(int(e.request), int(e.tokens), int(e.before)) for e in r.entries[row, : r.batches["length"][row]]]
        )
    return found


def test_before_0_31_the_threshold_binds_a_request_that_is_alone() -> None:
    one = [Ask(0, 12, 1)]
    assert play("vllm-v1", CHUNKS, one, blocks=100)[0] == [[(0, 12, 0)]]
    older = CHUNKS._replace(lone_request_uncapped=False)
    assert play("vllm-v1", older, one, blocks=100)[0] == [[(0, 5, 0)], [(0, 5, 5)], [(0, 2, 10)]]


def test_the_adaptive_threshold_shares_the_budget_among_all_who_are_alive() -> None:
    """thr = max(thr, max_num_batched_tokens // (running + waiting)), vLLM 0.32 Scheduler.schedule()."""
    limits = LIMITS._replace(long_prefill_token_threshold=3, adaptive_long_prefill=True)
    two = [Ask(0, 20, 1), Ask(0, 20, 1)]
    # 16 // 2 = 8 for each; without, 3
    assert play("vllm-v1", limits, two, blocks=100)[0][0] == [(0, 8, 0), (1, 8, 0)]
    fixed = limits._replace(adaptive_long_prefill=False)
    assert play("vllm-v1", fixed, two, blocks=100)[0][0] == [(0, 3, 0), (1, 3, 0)]
    # 16 // 6 = 2 is below the threshold, which stands
    six = [Ask(0, 20, 1)] * 6
    assert play("vllm-v1", limits, six, blocks=100)[0][0] == [(0, 3, 0), (1, 3, 0), (2, 3, 0)]


def test_the_adaptive_threshold_sets_none_where_none_is_set() -> None:
    """SchedulerConfig of vLLM 0.31 and later: only applies when long_prefill_token_threshold is nonzero."""
    limits = LIMITS._replace(adaptive_long_prefill=True)
    two = [Ask(0, 20, 1), Ask(0, 20, 1)]
    assert play("vllm-v1", limits, two, blocks=100)[0] == [[(0, 16, 0)], [(0, 4, 16), (1, 12, 0)], [(1, 8, 12)]]


@pytest.mark.parametrize("discipline", ["vllm-v1", "sarathi"])
def test_a_victim_that_was_passed_over_costs_nobody_a_turn(discipline: str) -> None:
    """3 blocks of 4. 0, whose last token is on its way, is passed over, and loses its block to 1's fifth token.

    vLLM 0.28 and later, Scheduler.schedule(): victim_index < req_index. Before, only a victim in the batch counted.
    """
    limits = LIMITS._replace(max_model_len=12, ordering=PRIORITY, pipeline_depth=2)
    asks = [Ask(0, 3, 2, priority=9), Ask(1, 4, 3, priority=1), Ask(1, 2, 3, priority=2)]
    assert _planned(discipline, limits, asks, blocks=3, steps=3) == [
        [(0, 3, 0)],
        [(0, 1, 3), (1, 4, 0), (2, 2, 0)],
        [(1, 1, 4), (2, 1, 2)],
    ]


def test_before_0_28_a_victim_that_was_passed_over_costs_a_turn() -> None:
    limits = LIMITS._replace(max_model_len=12, ordering=PRIORITY, pipeline_depth=2, passed_over_counts=False)
    asks = [Ask(0, 3, 2, priority=9), Ask(1, 4, 3, priority=1), Ask(1, 2, 3, priority=2)]
    assert _planned("vllm-v1", limits, asks, blocks=3, steps=3)[2] == [(1, 1, 4)]


def test_who_stands_behind_one_that_left_by_itself_is_served_from_0_33_on() -> None:
    """2 blocks of 4: 0, the less urgent, finds none for its fifth token and goes; 1 needs none for its fourth."""
    limits = LIMITS._replace(max_model_len=8, ordering=PRIORITY)
    asks = [Ask(0, 3, 4, priority=9), Ask(1, 2, 4, priority=1)]
    found, _ = play("vllm-v1", limits, asks, blocks=2)
    assert found[:4] == [[(0, 3, 0)], [(0, 1, 3), (1, 2, 0)], [], [(1, 1, 2)]]
    found, _ = play("vllm-v1", limits._replace(serves_past_self_victim=True), asks, blocks=2)
    assert found[:4] == [[(0, 3, 0)], [(0, 1, 3), (1, 2, 0)], [(1, 1, 2)], [(1, 1, 3)]]


def test_time_and_tokens_that_a_preemption_costs() -> None:
    """4 blocks of 4 tokens, two prompts of 7 with 5 outputs each: 1 is thrown out when 0 needs a third block."""
    found, r = play("vllm-v1", LIMITS._replace(max_model_len=16), [Ask(0, 7, 5), Ask(0, 7, 5)], blocks=4)
    assert found == [
        [(0, 7, 0), (1, 7, 0)],
        [(0, 1, 7), (1, 1, 7)],
        *[[(0, 1, 8 + i)] for i in range(3)],
        # 1 is back with its prompt and 2 outputs, of which 8 tokens had been computed
        [(1, 9, 0)],
        *[[(1, 1, 9 + i)] for i in range(2)],
    ]
    assert r.at[REDONE_TOKENS] == 8
    one = r.ledger[1]
    # out from the end of the second step, at 20 ns, to that of the sixth
    assert (one.prefill, one.decode, one.preempted, one.stalled, one.host) == (10, 30, 40, 0, 0)
    assert one.finish == 80
    assert r.ledger[0].preempted == 0


def test_without_chunked_prefill_a_prompt_that_just_fits_the_step_enters() -> None:
    limits = LIMITS._replace(chunked_prefill=False)
    exact = [Ask(0, 10, 1), Ask(0, 6, 1)]
    assert play("vllm-v1", limits, exact, blocks=100)[0] == [[(0, 10, 0), (1, 6, 0)]]
    over = [Ask(0, 10, 1), Ask(0, 7, 1)]
    assert play("vllm-v1", limits, over, blocks=100)[0] == [[(0, 10, 0)], [(1, 7, 0)]]


def test_a_hit_ends_at_the_first_block_that_is_missing(interpreted: Interpreted) -> None:
    """Evicted content in the middle: what follows it is still there, and of no use."""
    _, r = play("vllm-v1", LIMITS._replace(prefix_caching=True), [Ask(0, 17, 1, content=(5, 6, 7, 8))], blocks=10)
    prefix = interpreted.prefix
    assert prefix.longest_hit(r, 0) == (4, 4)
    missing = prefix.cached_block(r.pool, prefix.block_key(r, 0, 1))
    prefix.unregister(r.pool, missing)
    assert prefix.longest_hit(r, 0) == (1, 1)


def test_a_request_ends_where_the_context_does() -> None:
    """As vLLM 0.32's check_stop does: at max_model_len tokens, whatever it asked for."""
    found, r = play("vllm-v1", LIMITS._replace(max_model_len=12), [Ask(0, 10, 9)], blocks=100, most_steps=20)
    assert found == [[(0, 10, 0)], [(0, 1, 10)]]
    assert r.progress["known"].tolist() == [12]
