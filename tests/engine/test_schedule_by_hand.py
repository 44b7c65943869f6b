"""Small scenarios worked by hand; rules as in vLLM 0.32's Scheduler.schedule()."""

import numpy as np
from hand_worked import LIMITS, Ask, Step, play

from simkit.engine.loop import iterate
from simkit.engine.replica import new_replica
from simkit.engine.state import (
    ABORT,
    ADMITTED,
    FINISHED,
    FREE_BLOCKS,
    NEVER,
    NOW,
    PREEMPTED_NOW,
    PRIORITY,
    REQUEST,
    RUNNING_COUNT,
    Limits,
    Replica,
    records,
)
from simkit.models.steptables import constant_tables


def steps(limits: Limits, requests: list[tuple[int, int, int, int]], blocks: int) -> tuple[list[Step], Replica]:
    """The batches that requests (arrival step, prompt, output, priority) give."""
    asks = [Ask(step, prompt, output, priority=priority) for step, prompt, output, priority in requests]
    return play("vllm-v1", limits, asks, blocks)


def test_five_requests_share_a_budget_of_16_tokens() -> None:
    found, r = steps(LIMITS, [(0, 20, 2, 0), (0, 6, 2, 0), (1, 3, 1, 0), (2, 5, 2, 0), (3, 2, 1, 0)], blocks=100)
    assert found == [
        # the first prompt takes the whole budget; nothing is left for the second
        [(0, 16, 0)],
        # it is running, so its remaining 4 go first; then 1 and 2 enter, and running is full (3)
        [(0, 4, 16), (1, 6, 0), (2, 3, 0)],
        # 2 has its one token and is gone: 3 enters behind the decodes of 0 and 1
        [(0, 1, 20), (1, 1, 6), (3, 5, 0)],
        # 0 and 1 are done; the last one waited for a place though the budget was free
        [(3, 1, 5), (4, 2, 0)],
    ]
    assert np.all(r.progress["status"] == FINISHED)


def test_a_running_prefill_goes_before_later_decodes() -> None:
    found, _ = steps(LIMITS, [(0, 40, 2, 0), (0, 8, 9, 0)], blocks=100)
    # no decode-first: 0's chunks leave 1 waiting, and in the third step 1 gets what 0's last chunk left
    assert found[:3] == [[(0, 16, 0)], [(0, 16, 16)], [(0, 8, 32), (1, 8, 0)]]


def test_head_of_line_is_not_overtaken() -> None:
    # 8 blocks of 4 tokens: 0 holds 5 (6 soon), the head needs 4 at once, the small one behind it would need 1
    found, _ = steps(LIMITS, [(0, 20, 3, 0), (1, 14, 1, 0), (1, 2, 1, 0)], blocks=8)
    admitted = [request for step in found for request, _, before in step if before == 0]
    assert admitted == [0, 1, 2]
    assert found[2] == [(0, 1, 20)]


def test_preemption_takes_the_latest_and_recomputes_it_whole() -> None:
    # 4 blocks of 4 tokens: both prompts of 7 fit (2 blocks each) until the outputs need a third
    limits = LIMITS._replace(max_model_len=16)
    found, r = steps(limits, [(0, 7, 5, 0), (0, 7, 5, 0)], blocks=4)
    assert found[0] == [(0, 7, 0), (1, 7, 0)]
    assert found[1] == [(0, 1, 7), (1, 1, 7)]
    # request 0 needs a third block for its 9th token: 1 is thrown out, and nobody is admitted in that step
    assert found[2] == [(0, 1, 8)]
    assert r.progress["preemptions"].tolist() == [0, 1]
    # 0 ends after its 5 tokens; 1 comes back with prompt and the 2 tokens it had, 9 in one chunk
    assert (1, 9, 0) in [entry for step in found for entry in step]
    assert r.pool.counts[FREE_BLOCKS] == 4


def test_priority_admits_and_preempts_by_urgency() -> None:
    limits = LIMITS._replace(ordering=PRIORITY, max_running=1)
    found, _ = steps(limits, [(0, 3, 2, 1), (1, 3, 1, 2), (1, 3, 1, 0)], blocks=100)
    admitted = [request for step in found for request, _, before in step if before == 0]
    assert admitted == [0, 2, 1]


def test_asynchronous_scheduling_plans_one_step_ahead() -> None:
    rows = records(1, REQUEST)
    rows[0] = (0, 4, 2, 2, 0, 2, 0, NEVER, 0, 0)
    limits = LIMITS._replace(pipeline_depth=2)
    r = new_replica(limits, rows, np.zeros(0, dtype=np.int64), records(0, ABORT), 20)
    tables = constant_tables(16, 3, step_ns=10.0)._replace(host_ns=np.full(4, 3.0))
    iterate(r, tables)
    # the prompt's step is running and its token is not known, yet the next step counts on it
    assert r.progress["placeholders"][0] == 1
    assert r.at[NOW] == 3
    iterate(r, tables)
    assert r.entries[1, 0].before == 4
    assert (r.batches["start"].tolist(), r.batches["end"].tolist()) == ([3, 13], [13, 23])
    assert r.ledger["first_token"][0] == 13
    assert (r.at[RUNNING_COUNT], r.at[ADMITTED], r.at[PREEMPTED_NOW]) == (1, 0, 0)
