"""Rules that no recording brings out, worked by hand: what older versions do, and what seldom happens."""

from hand_worked import LIMITS, Ask, play

from simkit.engine.interpreted import Interpreted
from simkit.engine.state import REDONE_TOKENS

CHUNKS = LIMITS._replace(long_prefill_token_threshold=5)


def test_before_0_32_the_threshold_binds_a_request_that_is_alone() -> None:
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
