"""The client's requests: counts, times, lengths and shared content, as inference-perf's own code makes them."""

from collections import Counter

import numpy as np

from simkit.fidelity.measured_runs import SharedPrefixLoad
from simkit.fidelity.shared_prefix import PAUSE_S, shared_prefix_workload

LOAD = SharedPrefixLoad(
    system_prompts=3,
    users_per_prompt=2,
    system_prompt_len=40,
    question_len=100,
    output_len=20,
    stages=((4.0, 10.0), (8.0, 5.0)),
)


def test_a_stage_sends_rate_times_duration_and_fills_it() -> None:
    workload, stage = shared_prefix_workload(LOAD, 20.0, "a")
    assert Counter(stage.tolist()) == {0: 40, 1: 40}
    times = workload.arrival_us / 1e6
    # gaps are scaled so that they sum to the duration: the last request comes at its very end
    assert abs(times[stage == 0][-1] - 10.0) < 1e-5
    assert abs(times[stage == 1][-1] - (10.0 + PAUSE_S + 5.0)) < 1e-5
    assert (np.diff(times) >= 0).all()


def test_gaps_are_exponential() -> None:
    load = LOAD.model_copy(update={"stages": ((100.0, 100.0),)})
    gaps = np.diff(shared_prefix_workload(load, 20.0, "a").workload.arrival_us / 1e6)
    assert abs(gaps.mean() - 0.01) < 1e-4
    assert abs(gaps.std() / gaps.mean() - 1.0) < 0.03  # coefficient of variation of an exponential


def test_lengths_have_the_mean_that_was_measured() -> None:
    workload, _ = shared_prefix_workload(LOAD, 18.5, "a")
    assert set(workload.prompt_tokens.tolist()) == {140}
    assert set(workload.output_tokens.tolist()) == {18, 19}
    assert workload.output_tokens.mean() == 18.5


def test_users_come_in_turn_and_each_stage_begins_again() -> None:
    workload, stage = shared_prefix_workload(LOAD, 20.0, "a")
    prefixes = workload.prefixes
    assert prefixes is not None
    content = [tuple(prefixes.ids[a:b]) for a, b in zip(prefixes.start, prefixes.start[1:], strict=False)]
    first, second = content[:40], content[40:]
    assert len(set(content)) == 6
    assert first[:6] == first[6:12] == second[:6]
    assert (stage[:40] == 0).all()


def test_users_of_a_system_prompt_share_its_whole_blocks_and_no_more() -> None:
    workload, _ = shared_prefix_workload(LOAD, 20.0, "a")
    prefixes = workload.prefixes
    assert prefixes is not None
    content = {tuple(prefixes.ids[a:b]) for a, b in zip(prefixes.start, prefixes.start[1:], strict=False)}
    # 40 tokens are 2 whole blocks of 16; a prompt of 140 has 8
    assert {len(ids) for ids in content} == {8}
    assert Counter(Counter(ids[:2] for ids in content).values()) == {2: 3}
    assert max(Counter(i for ids in content for i in ids[2:]).values()) == 1


def test_a_seed_gives_the_same_requests() -> None:
    one, other = (shared_prefix_workload(LOAD, 20.0, "a", seed=7).workload for _ in range(2))
    assert (one.arrival_us == other.arrival_us).all()
    assert (shared_prefix_workload(LOAD, 20.0, "a", seed=8).workload.arrival_us != one.arrival_us).any()
