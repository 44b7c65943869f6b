"""Each ordering on a scenario worked by hand. One request runs at a time, so the order of service is the ordering."""

import pytest
from hand_worked import LIMITS, Ask, first_served, play

from simkit.engine.discipline import DISCIPLINES
from simkit.engine.state import DEADLINE, FAIR, FCFS, FEEDBACK, NEVER, PRIORITY, REMAINING, SHORTEST

ONE = LIMITS._replace(max_running=1)


def order(ordering: int, asks: list[Ask], discipline: str = "vllm-v1", preemptive: bool = False) -> list[int]:
    limits = ONE._replace(ordering=ordering, preemptive=preemptive)
    return first_served(play(discipline, limits, asks, blocks=100)[0])


def test_fcfs_is_the_order_of_arrival() -> None:
    asks = [Ask(0, 3, 2), Ask(1, 9, 1), Ask(1, 3, 1), Ask(1, 5, 1), Ask(2, 1, 1)]
    assert order(FCFS, asks) == [0, 1, 2, 3, 4]


def test_priority_is_the_smallest_number_then_the_order_of_arrival() -> None:
    urgency = [5, 3, 1, 3, 2]
    asks = [Ask(min(i, 1), 3, 2, priority=urgency[i]) for i in range(5)]
    # 0 runs already when the others come
    assert order(PRIORITY, asks) == [0, 2, 4, 1, 3]


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_sjf_is_the_shortest_predicted_output_whatever_the_true_one_and_the_discipline(discipline: str) -> None:
    believed = [1, 5, 2, 9, 2]
    true = [2, 1, 4, 1, 3]
    asks = [Ask(min(i, 1), 3, true[i], predicted=believed[i]) for i in range(5)]
    assert order(SHORTEST, asks, discipline) == [0, 2, 4, 1, 3]


# 0 produces 6. When 1 comes with 5, 0 has 4 left; when 2 comes with 2, 0 has 3 left; 3 and 4 come before 0 is back
LEFT = [Ask(0, 3, 6), Ask(2, 3, 5), Ask(3, 3, 2), Ask(3, 3, 4), Ask(3, 3, 3)]


def test_srpt_counts_what_is_left() -> None:
    limits = ONE._replace(ordering=REMAINING, preemptive=True)
    found, r = play("vllm-v1", limits, LEFT, blocks=100)
    # 1 with 5 does not displace 0 with 4 left
    assert found[:3] == [[(0, 3, 0)], [(0, 1, 3)], [(0, 1, 4)]]
    # 2 with 2 displaces 0 with 3 left, in a step that preempts and hence admits nobody
    assert found[3:6] == [[], [(2, 3, 0)], [(2, 1, 3)]]
    # 0 has 3 left, as 4 has, and came first: prompt and 3 outputs again; then 4 (3), 3 (4), 1 (5)
    assert found[6:9] == [[(0, 6, 0)], [(0, 1, 6)], [(0, 1, 7)]]
    assert first_served(found) == [0, 2, 4, 3, 1]
    assert r.progress["preemptions"].tolist() == [1, 0, 0, 0, 0]


def test_sjf_does_not_count_what_was_produced() -> None:
    found, _ = play("vllm-v1", ONE._replace(ordering=SHORTEST, preemptive=True), LEFT, blocks=100)
    # 1 with 5 displaces 0 with 6, of which 2 are there already
    assert found[2:4] == [[], [(1, 3, 0)]]


def test_edf_is_the_earliest_deadline_and_none_is_last() -> None:
    deadlines = [NEVER, 500, 200, NEVER, 300]
    asks = [Ask(min(i, 1), 3, 2, deadline_ns=deadlines[i]) for i in range(5)]
    assert order(DEADLINE, asks) == [0, 2, 4, 1, 3]


@pytest.mark.parametrize(("prompt", "output"), [(14, 1), (4, 6)])
def test_fair_serves_the_tenant_with_least_service(prompt: int, output: int) -> None:
    # service: prompt + 2 x output, so 6 each and 16 for 3
    asks = [Ask(0, 4, 1), Ask(0, 4, 1), Ask(0, 4, 1), Ask(0, prompt, output, tenant=1), Ask(0, 4, 1, tenant=1)]
    # both at 0: row 0; 6 and 0: 3; 6 and 16: 1; 12 and 16: 2; 4
    assert order(FAIR, asks) == [0, 3, 1, 2, 4]


def test_fair_gives_no_credit_for_time_away() -> None:
    asks = [Ask(0, 4, 1), Ask(0, 4, 1), Ask(0, 4, 1), Ask(2, 4, 1, tenant=1), Ask(2, 4, 1, tenant=1)]
    # tenant 1 comes when 0 and 1 are over, 12 for tenant 0: it starts at 12 too, so 2 is first among equals
    assert order(FAIR, asks) == [0, 1, 2, 3, 4]


def test_mlfq_lets_long_prompts_skip_levels() -> None:
    limits = ONE._replace(ordering=FEEDBACK, max_num_batched_tokens=2048, max_model_len=2048)
    # levels end at 256, 768, 1792 tokens served
    prompts = [10, 800, 300, 100, 255]
    asks = [Ask(0, prompt, 1) for prompt in prompts]
    assert first_served(play("vllm-v1", limits, asks, blocks=1000)[0]) == [0, 3, 4, 2, 1]


def test_mlfq_demotes_who_has_used_up_its_quantum() -> None:
    limits = ONE._replace(ordering=FEEDBACK, preemptive=True, max_num_batched_tokens=2048, max_model_len=2048)
    found, _ = play("vllm-v1", limits, [Ask(0, 250, 20), Ask(3, 5, 1), *[Ask(4, 5, 1)] * 3], blocks=1000)
    # 0 falls to the second level with its 256th token, its sixth output; those who wait on the first go before it
    assert found[:6] == [[(0, 250, 0)], *[[(0, 1, 249 + i)] for i in range(1, 6)]]
    assert found[6:8] == [[], [(1, 5, 0)]]
    # back when nobody waits on the first level: 250 + 6 tokens again
    assert found[8:12] == [[(2, 5, 0)], [(3, 5, 0)], [(4, 5, 0)], [(0, 256, 0)]]


def test_preemptive_gives_the_place_of_the_least_urgent_to_a_more_urgent_one() -> None:
    asks = [Ask(0, 3, 9, priority=1), Ask(0, 3, 9, priority=2), Ask(2, 3, 1, priority=0), Ask(2, 3, 1, priority=2)]
    asks.append(Ask(2, 3, 1, priority=2))
    limits = LIMITS._replace(max_running=2, ordering=PRIORITY, preemptive=True)
    found, r = play("vllm-v1", limits, asks, blocks=100)
    # 1 is the less urgent of the two that run; 2 takes its place, 3 and 4 are no more urgent than 1 and wait
    assert found[2:4] == [[(0, 1, 4)], [(0, 1, 5), (2, 3, 0)]]
    assert found[4] == [(0, 1, 6), (1, 5, 0)]
    assert r.progress["preemptions"].tolist() == [0, 1, 0, 0, 0]
    waiting = play("vllm-v1", limits._replace(preemptive=False), asks, blocks=100)[1]
    assert waiting.progress["preemptions"].tolist() == [0, 0, 0, 0, 0]
