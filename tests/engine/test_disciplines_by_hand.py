"""Each discipline on a scenario worked by hand from the rules of its source."""

import numpy as np
import pytest
from hand_worked import LIMITS, STEP_NS, Ask, Step, first_served, play

from simkit.engine.discipline import DISCIPLINES
from simkit.engine.sglang import FIRST_RATIO, RATIO_DECAY, UNIT
from simkit.engine.state import COMPUTED_TOKENS, DEVICE_FREE, FINISHED, FREE_BLOCKS, NEW_TOKEN_RATIO, PRIORITY


def test_static_forms_a_batch_only_when_the_last_is_over() -> None:
    asks = [Ask(0, 6, 3), Ask(0, 5, 1), Ask(1, 4, 2), Ask(1, 20, 1), Ask(2, 3, 1)]
    found, r = play("static", LIMITS._replace(max_running=2), asks, blocks=100)
    assert found == [
        [(0, 6, 0), (1, 5, 0)],
        # 1 is over and its place is free, yet 2 and 3 wait for 0
        [(0, 1, 6)],
        [(0, 1, 7)],
        # the next batch: 16 tokens hold 2's prompt and 12 of 3's 20
        [(2, 4, 0), (3, 12, 0)],
        # prompts are finished before anybody decodes
        [(3, 8, 12)],
        [(2, 1, 4)],
        [(4, 3, 0)],
    ]
    assert np.all(r.progress["status"] == FINISHED)


def test_static_sets_memory_aside_for_all_that_was_asked() -> None:
    # 8 blocks of 4: 0 takes ceil(20/4) = 5; 1 asks for 3 + 12, 4 blocks, and 3 are left, though its prompt needs one
    asks = [Ask(0, 10, 2, max_tokens=10), Ask(0, 3, 1, max_tokens=12), Ask(0, 3, 1)]
    found, _ = play("static", LIMITS, asks, blocks=8)
    assert found == [[(0, 10, 0)], [(0, 1, 10)], [(1, 3, 0), (2, 3, 0)]]


def test_orca_admits_at_each_iteration_against_a_full_reservation() -> None:
    asks = [Ask(0, 6, 4), Ask(0, 5, 2, max_tokens=8), Ask(0, 4, 1, max_tokens=12), Ask(0, 2, 1), Ask(3, 20, 1)]
    found, r = play("orca", LIMITS, asks, blocks=10)
    assert found == [
        # reserved of 10 blocks: 0 ceil(10/4) = 3, 1 ceil(13/4) = 4; 2 would need ceil(16/4) = 4, and 3 may not overtake
        [(0, 6, 0), (1, 5, 0)],
        [(0, 1, 6), (1, 1, 5)],
        # 1 is over: 2 and 3 enter beside 0's decode
        [(0, 1, 7), (2, 4, 0), (3, 2, 0)],
        # a prompt longer than a step is the only one that is cut
        [(0, 1, 8), (4, 15, 0)],
        [(4, 5, 15)],
    ]
    assert r.progress["preemptions"].tolist() == [0] * 5


def test_orca_computes_prompts_whole() -> None:
    found, _ = play("orca", LIMITS, [Ask(0, 10, 1), Ask(0, 10, 1), Ask(0, 6, 1)], blocks=100)
    # 6 of 16 tokens are left after 0: the next prompt waits rather than being cut, and keeps its turn
    assert found == [[(0, 10, 0)], [(1, 10, 0), (2, 6, 0)]]
    # one that is longer than a step is cut, and what it leaves of its second step is not for half of another
    found, _ = play("orca", LIMITS, [Ask(0, 20, 1), Ask(0, 14, 1)], blocks=100)
    assert found == [[(0, 16, 0)], [(0, 4, 16)], [(1, 14, 0)]]


def test_vllm_v0_puts_prompts_before_decodes() -> None:
    asks = [Ask(0, 7, 4), Ask(0, 7, 3), Ask(1, 4, 2), Ask(1, 10, 1), Ask(1, 2, 1)]
    found, _ = play("vllm-v0", LIMITS, asks, blocks=6)
    assert found == [
        [(0, 7, 0), (1, 7, 0)],
        # a step of prompts stalls the decodes; three run now, which is the most
        [(2, 4, 0)],
        # 2 takes the last block for its fifth token
        [(0, 1, 7), (1, 1, 7), (2, 1, 4)],
        # 2 is over, 2 blocks are free, 3 needs 3 and 4 may not overtake; 0 and 1 take a third block each
        [(0, 1, 8), (1, 1, 8)],
        # 1 is over: 3 has its blocks, and nothing is left for 4
        [(3, 10, 0)],
        [(4, 2, 0)],
        [(0, 1, 9)],
    ]


def test_vllm_v0_recomputes_whom_it_preempts() -> None:
    # 4 blocks: two prompts of 7 hold 2 each until the ninth token of 0 needs a third
    found, r = play("vllm-v0", LIMITS._replace(max_model_len=16), [Ask(0, 7, 5), Ask(0, 7, 5)], blocks=4)
    assert found[:3] == [[(0, 7, 0), (1, 7, 0)], [(0, 1, 7), (1, 1, 7)], [(0, 1, 8)]]
    # 1 needs 3 blocks for its 9 tokens and they are there when 0 is over
    assert found[3:] == [[(0, 1, 9)], [(0, 1, 10)], [(1, 9, 0)], [(1, 1, 9)], [(1, 1, 10)]]
    assert r.at[DEVICE_FREE] == 8 * STEP_NS


def test_vllm_v0_swaps_to_the_host_and_back() -> None:
    limits = LIMITS._replace(max_model_len=16, swap_block_ns=100)
    found, r = play("vllm-v0", limits, [Ask(0, 7, 5), Ask(0, 7, 5)], blocks=4)
    # as before, but 1 comes back with the 8 tokens it had, in a step of decodes
    assert found[2:6] == [[(0, 1, 8)], [(0, 1, 9)], [(0, 1, 10)], [(1, 1, 8)]]
    # two blocks out in step 2 and back in step 5, 100 ns each
    assert r.at[DEVICE_FREE] == 8 * STEP_NS + 4 * 100
    # from the end of step 1 to that of step 5
    assert r.ledger["preempted"].tolist() == [0, 4 * STEP_NS + 400]
    assert r.pool.counts[FREE_BLOCKS] == 4


def test_vllm_v0_admits_nobody_while_someone_waits_on_the_host() -> None:
    limits = LIMITS._replace(max_model_len=16, swap_block_ns=100)
    found, _ = play("vllm-v0", limits, [Ask(0, 7, 5), Ask(0, 7, 5), Ask(3, 2, 1)], blocks=4)
    # one block is free in steps 3 and 4, and 2's prompt needs no more, but 1 is first in line
    assert found[3:7] == [[(0, 1, 9)], [(0, 1, 10)], [(1, 1, 8)], [(2, 2, 0)]]


def test_sarathi_decodes_first_and_fills_up_with_chunks() -> None:
    asks = [Ask(0, 4, 4), Ask(1, 14, 2), Ask(1, 3, 2), Ask(1, 9, 1), Ask(5, 2, 1)]
    found, _ = play("sarathi", LIMITS._replace(max_num_batched_tokens=8), asks, blocks=100)
    assert found == [
        [(0, 4, 0)],
        # one token of 8 for the decode, the rest for a chunk
        [(0, 1, 4), (1, 7, 0)],
        [(0, 1, 5), (1, 7, 7)],
        # three run: 3 waits for a place
        [(0, 1, 6), (1, 1, 14), (2, 3, 0)],
        [(2, 1, 3), (3, 7, 0)],
        # a prompt under way goes before a new one
        [(3, 2, 7), (4, 2, 0)],
    ]


def test_sarathi_takes_a_prompts_blocks_at_once() -> None:
    limits = LIMITS._replace(max_num_batched_tokens=8, max_model_len=16, reserve_full_isl=False)
    asks = [Ask(0, 4, 3), Ask(1, 14, 1)]
    found, _ = play("sarathi", limits, asks, blocks=4)
    # 14 tokens need all 4 blocks, so 1 waits for 0 to be over
    assert found == [[(0, 4, 0)], [(0, 1, 4)], [(0, 1, 5)], [(1, 8, 0)], [(1, 6, 8)]]
    # vLLM V1, without its check of the full sequence, lets it start on the blocks of a chunk
    assert play("vllm-v1", limits, asks, blocks=4)[0][1] == [(0, 1, 4), (1, 7, 0)]


def test_sarathi_keeps_a_prompts_blocks_from_decodes() -> None:
    limits = LIMITS._replace(max_num_batched_tokens=8, max_model_len=20)
    found, r = play("sarathi", limits, [Ask(0, 3, 6), Ask(0, 14, 1)], blocks=5, most_steps=3)
    # 1 has all of 4 blocks from the start: 0 finds none for its fifth token, and 1, the latest, loses its
    assert found == [[(0, 3, 0), (1, 5, 0)], [(0, 1, 3), (1, 7, 5)], [(0, 1, 4)]]
    assert r.progress["preemptions"].tolist() == [0, 1]


def test_sarathi_admits_nobody_in_a_step_that_preempts() -> None:
    limits = LIMITS._replace(max_model_len=16, ordering=PRIORITY)
    asks = [Ask(0, 7, 5, priority=1), Ask(0, 7, 5, priority=2), Ask(2, 2, 1, priority=0)]
    found, _ = play("sarathi", limits, asks, blocks=4, most_steps=4)
    # 0 takes one of 1's two blocks; the other would do for 2, who is first in line, one step later
    assert found[1:] == [[(0, 1, 7), (1, 1, 7)], [(0, 1, 8)], [(0, 1, 9), (2, 2, 0)]]


def test_who_is_taken_out_of_a_batch_gives_its_token_back() -> None:
    limits = LIMITS._replace(max_num_batched_tokens=11, ordering=PRIORITY)
    asks = [Ask(0, 4, 9, priority=2), Ask(1, 7, 9, priority=0), Ask(2, 30, 1, priority=1)]
    found, _ = play("sarathi", limits, asks, blocks=12, most_steps=4)
    assert found[:3] == [[(0, 4, 0)], [(0, 1, 4), (1, 7, 0)], [(0, 1, 5), (1, 1, 7), (2, 9, 0)]]
    # 1 needs a third block for its ninth token; 0, less urgent, had a token already: 2 gets 10 of 11
    assert found[3] == [(1, 1, 8), (2, 10, 9)]


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_asynchronous_scheduling_foresees_an_end_by_length(discipline: str) -> None:
    _, r = play(discipline, LIMITS._replace(pipeline_depth=2), [Ask(0, 4, 3)], blocks=100)
    # the last token's KV is computed by nobody
    assert r.at[COMPUTED_TOKENS] == 4 + 2


def test_sglang_serves_the_longest_cached_prefix_first() -> None:
    limits = LIMITS._replace(max_running=1, prefix_caching=True)
    asks = [
        Ask(0, 9, 1, content=(1, 2)),
        Ask(1, 9, 1, content=(7, 8)),
        Ask(1, 9, 1, content=(1, 2)),
        Ask(1, 9, 1, content=(1, 3)),
        Ask(1, 9, 1, content=(5, 6)),
    ]
    found, _ = play("sglang", limits, asks, blocks=100)
    # 0 leaves two cached blocks: all of 2's whole ones, the first of 3's, none of 1's and 4's
    assert found == [[(0, 9, 0)], [(2, 1, 8)], [(3, 5, 4)], [(1, 9, 0)], [(4, 9, 0)]]
    assert first_served(play("vllm-v1", limits, asks, blocks=100)[0]) == [0, 1, 2, 3, 4]


def test_sglang_lends_memory_by_the_new_token_ratio() -> None:
    limits = LIMITS._replace(max_running=4)
    asks = [Ask(0, 4, 2), Ask(0, 4, 3, max_tokens=8), Ask(0, 4, 8), Ask(0, 4, 1, max_tokens=4)]
    asks.append(Ask(0, 4, 1, max_tokens=28))
    found, _ = play("sglang", limits, asks, blocks=12)
    assert found == [
        # of 48 tokens, prompt + one spare block + all it asks for: 0 leaves 48-8-2 = 38, 1 38-8-8 = 22, 2 22-8-8 = 6;
        # 3 needs 4+4+4 = 12
        [(0, 4, 0), (1, 4, 0), (2, 4, 0)],
        # until somebody is over, none is tried
        [(0, 1, 4), (1, 1, 4), (2, 1, 4)],
        # 0 is over: 32 tokens are free, 1 and 2 may want 6 each, of which 0.699: 32-8 = 24; 3's 12 fit, and prompts go
        # first; then 24-8-4 = 12 are too few for 4's 4+28+4 = 36
        [(3, 4, 0)],
        # 3 is over: 36 in 24 again
        [(1, 1, 5), (2, 1, 5)],
        # 1 is over: 40 free, 2 may want 5, of which 3 count: 36 in 37 (were all counted, 35 would be too few)
        [(4, 4, 0)],
        *[[(2, 1, before)] for before in range(6, 11)],
    ]


@pytest.mark.parametrize(("asked", "batch"), [(29, [(0, 4, 0), (1, 4, 0)]), (30, [(0, 4, 0)])])
def test_sglang_needs_more_free_than_prompt_answer_and_a_block(asked: int, batch: Step) -> None:
    # 0 leaves 48 - (4 + 4) - 2 = 38 tokens; 1 needs 4 + asked + 4, and as much is not enough
    found, _ = play("sglang", LIMITS, [Ask(0, 4, 2), Ask(0, 4, 1, max_tokens=asked)], blocks=12)
    assert found[0] == batch


@pytest.mark.parametrize(("asked", "batch"), [(29, [(2, 1, 8)]), (30, [(1, 1, 4)])])
def test_sglang_does_not_count_a_cached_prefix_as_free_that_is_about_to_be_used(asked: int, batch: Step) -> None:
    asks = [Ask(0, 9, 1, content=(1, 2)), Ask(1, 4, 3), Ask(2, 9, 1, max_tokens=asked, content=(1, 2))]
    found, _ = play("sglang", LIMITS._replace(prefix_caching=True), asks, blocks=12)
    # 0 left two blocks cached. 1 holds a block and 0.7 x 2 tokens, one, are expected of it: 43 are free, 8 of them the
    # prefix; 2 needs 1 + asked + 4 in 35
    assert found[:3] == [[(0, 9, 0)], [(1, 4, 0)], batch]


def test_sglang_ratio_falls_with_each_step_of_decodes() -> None:
    # one step of prompt, then 3 of decodes; 599 of them end 602e6 lower, at 0.098
    _, r = play("sglang", LIMITS, [Ask(0, 4, 60)], blocks=100, most_steps=4)
    assert r.at[NEW_TOKEN_RATIO] == FIRST_RATIO - 3 * RATIO_DECAY
    assert abs(FIRST_RATIO - 600 * RATIO_DECAY - 0.7 * 0.14 * UNIT) < 1000


def test_sglang_sends_back_who_has_fewest_outputs() -> None:
    # blocks of one token, 27 of them. 1 arrives when 0 has 3 outputs of 14 and holds 4 blocks: 11 more are expected at
    # 0.698, 7 tokens, so 16 are free and 1's 2 + 12 + 1 = 15 are less
    limits = LIMITS._replace(block_size=1)
    asks = [Ask(0, 2, 14), Ask(3, 2, 12)]
    found, r = play("sglang", limits, asks, blocks=27, most_steps=15)
    assert found[:4] == [[(0, 2, 0)], [(0, 1, 2)], [(0, 1, 3)], [(1, 2, 0)]]
    # each step takes two blocks: 4 + j and 2 + j are held after j steps, 26 after ten
    assert found[4:14] == [[(0, 1, 3 + j), (1, 1, 1 + j)] for j in range(1, 11)]
    # the 27th is one too few for both: 1 has 11 outputs, 0 has 13
    assert found[14] == [(0, 1, 14)]
    assert r.progress["preemptions"].tolist() == [0, 1]
    # the estimate from those who stayed: (13 + 20) of 14 + 1, at most 1
    assert r.at[NEW_TOKEN_RATIO] == UNIT
    found, _ = play("sglang", limits, asks, blocks=27)
    # 1 computes its prompt and 11 outputs again, which gives its last
    assert found[15:] == [[(1, 13, 0)]]


def test_sglang_sends_back_the_longest_prompt_among_equals() -> None:
    # as above, with two that come together: 0 is expected to want 0.698 x 21, 14 tokens, and wants 21
    limits = LIMITS._replace(block_size=1)
    asks = [Ask(0, 2, 24), Ask(3, 3, 22), Ask(3, 2, 22)]
    found, r = play("sglang", limits, asks, blocks=70, most_steps=25)
    assert found[3] == [(1, 3, 0), (2, 2, 0)]
    # after 20 steps of decodes 24 + 23 + 22 = 69 blocks are held; of 1 and 2, 21 outputs each, 1 has the longer prompt
    assert found[23] == [(0, 1, 23), (1, 1, 22), (2, 1, 21)]
    assert found[24] == [(0, 1, 24), (2, 1, 22)]
    assert r.progress["preemptions"].tolist() == [0, 1, 0]
