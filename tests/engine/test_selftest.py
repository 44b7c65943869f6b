"""Disciplines with one mistake each are caught, under the name of the rule that they break."""

from pathlib import Path

import numpy as np
import pytest

from simkit.engine import checked_run
from simkit.engine.checks import Checker, check_end
from simkit.engine.histories import random_history
from simkit.engine.interpreted import interpreted, uncompiled
from simkit.engine.loop import IDLE, advance
from simkit.engine.oracles import check_oracles
from simkit.engine.policy_file import PolicyFile, find_policy
from simkit.engine.selftest import Finding, check_bundled, check_policy, check_rules
from simkit.engine.state import FINISHED, FREE_BLOCKS, NEVER, SUM_HOST, Replica
from simkit.engine.violation import RULES, Violation

EXAMPLE = Path(__file__).resolve().parents[2] / "experiments/own_discipline/decode_first.py"

GIVE = "            give(r, row, request, tokens, before)\n"
ADMIT = "        admit(r, request, hits, hit + tokens)\n"
LAST = "        for_prompts -= tokens\n\n"
HEAD = "        request = head(r)\n"
MORE = (
    "from simkit.engine.blocks import hold_cached, push_back, push_front, take_out\n"
    "from simkit.engine.state import FREE_BLOCKS, WAITING_HEAD\n"
    "from simkit.engine.waiting import dequeue, head\n"
)
HELD = "r.pool.table[r.progress[request].slot, 0]"

# (rule, what is replaced in the worked example, by what): one mistake each
MISTAKES = {
    "spends more than the budget": (
        "budget kept",
        "budget = r.limits.max_num_batched_tokens\n",
        "budget = r.limits.max_num_batched_tokens + 3\n",
    ),
    "admits one too many": ("at most max_running", "] < r.limits.max_running:", "] <= r.limits.max_running:"),
    "serves a request twice": (
        "once a batch",
        GIVE,
        "            if tokens > 1 and r.batches[row].length + 2 < r.limits.max_running:\n"
        "                give(r, row, request, 1, before)\n"
        "                tokens -= 1\n" + GIVE,
    ),
    "serves the latest first": (
        "batch in order",
        "    # whoever",
        "    if r.batches[row].length > 1:\n"
        "        for name in ('request', 'tokens', 'before'):\n"
        "            last = r.entries[row, 1][name]\n"
        "            r.entries[row, 1][name] = r.entries[row, 0][name]\n"
        "            r.entries[row, 0][name] = last\n    # whoever",
    ),
    "gives more than is due": (
        "given what is due",
        GIVE,
        GIVE.replace("tokens,", "tokens + (tokens == due_tokens(r, request)),"),
    ),
    "gives nothing": ("given what is due", GIVE, GIVE.replace("tokens,", "0,")),
    "begins at the wrong token": ("given what is due", GIVE, GIVE.replace("before)", "before + 1)")),
    "serves who is not admitted": (
        "given what is due",
        ADMIT,
        "        if r.batches[row].length == r.limits.max_running:\n            return\n",
    ),
    "takes no blocks": ("memory for its tokens", " and grow_or_preempt(r, row, request, before + tokens)", ""),
    "loses a block": ("no block leaked", GIVE, GIVE + "            take_out(r.pool, r.pool.blocks[0].after)\n"),
    "frees a free block": (
        "no block freed twice",
        GIVE,
        GIVE + "            if r.pool.counts[FREE_BLOCKS] > 1:\n"
        "                push_back(r.pool, r.pool.blocks[0].after)\n",
    ),
    "frees a block in use": ("no block freed twice", GIVE, GIVE + f"            push_front(r.pool, {HELD})\n"),
    "miscounts references": ("references counted", GIVE, GIVE + f"            r.pool.blocks[{HELD}].references += 1\n"),
    "lends another's block": (
        "shared only if equal",
        GIVE,
        GIVE + "            other = r.running[0]\n"
        "            if other != request and r.progress[request].held < r.pool.table.shape[1]:\n"
        "                hold_cached(r.pool, r.progress, request, r.pool.table[r.progress[other].slot, 0])\n",
    ),
    "miscounts free blocks": ("free queue sound", GIVE, GIVE + "            r.pool.counts[FREE_BLOCKS] -= 1\n"),
    "forgets what a block holds": (
        "prefix map sound",
        LAST,
        f"        if r.progress[request].hashed > 0:\n            r.pool.blocks[{HELD}].key = 0\n" + LAST,
    ),
    "drops a request": (
        "everyone in one place",
        HEAD,
        HEAD + "        if r.at[WAITING_COUNT] > 3:\n            dequeue(r)\n            return\n",
    ),
    "counts tokens that were not computed": (
        "tokens accounted for",
        GIVE,
        GIVE + "            r.progress[request].computed += 1\n",
    ),
    "admits nobody": ("no livelock", "tokens == 0 or not fits", "tokens >= 0 or not fits"),
    "passes long prompts over": (
        "nobody starved",
        HEAD,
        "        w, first = r.waiting, r.at[WAITING_HEAD]\n"
        "        if r.at[WAITING_COUNT] > 1 and r.limits.ordering == 0 and r.requests[w[first]].prompt > 50:\n"
        "            for k in range(first + 1, first + r.at[WAITING_COUNT]):\n"
        "                if r.requests[w[k]].prompt <= 50:\n"
        "                    long, short = int(w[first]), int(w[k])\n"
        "                    w[first], w[k] = short, long\n"
        "                    break\n" + HEAD,
    ),
    "divides by nothing": (
        "runs without an error",
        "    decodes = count",
        "    budget // len(r.tenants[:0])\n    decodes = count",
    ),
    "does not come back": (
        "runs without an error",
        GIVE,
        GIVE + "            while r.limits.block_size > 8:\n                pass\n",
    ),
}


# what the same mistake breaks besides where layers see windows: grow() gives back what these have passed, and a block
# more in one group's row is none in the others'
ALSO = {"takes no blocks": "no block leaked", "lends another's block": "memory for its tokens"}


def with_mistake(old: str, new: str) -> PolicyFile:
    text = EXAMPLE.read_text()
    assert text.count(old) == 1, old
    return PolicyFile(EXAMPLE, "schedule", "", MORE + text.replace(old, new))


def broken(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.rule: finding for finding in findings if not finding.held}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught_under_the_name_of_its_rule(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_run, "LONGEST_HISTORY_S", 2.0)
    rule, old, new = MISTAKES[mistake]
    found = broken(check_policy(with_mistake(old, new), histories=10))
    assert set(found) - {ALSO.get(mistake)} == {rule}
    first = found[rule]
    assert first.step is not None
    assert first.step >= 1
    assert first.history is not None
    assert first.detail


def test_an_error_of_the_policy_names_its_file_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _, old, new = MISTAKES["divides by nothing"]
    policy = with_mistake(old, new)
    line = policy.text.splitlines().index("    budget // len(r.tenants[:0])") + 1
    detail = broken(check_policy(policy, histories=1))["runs without an error"].detail
    assert detail.startswith(f"{EXAMPLE}:{line}: ZeroDivisionError")


def test_the_worked_example_keeps_every_rule() -> None:
    policy = find_policy(str(EXAMPLE))
    assert policy is not None
    assert len(policy.text.splitlines()) < 60
    findings = check_policy(policy, histories=30)
    assert broken(findings) == {}
    assert [finding.rule for finding in findings] == [*RULES, "interpreted = compiled"]
    assert findings[-1].detail == "20 histories"


def test_a_discipline_that_counts_blocks_of_one_group_only_is_found_where_there_are_more() -> None:
    """SGLang's takes blocks by its own reckoning: right for one group, and for no model whose layers see windows."""
    with uncompiled():
        iterate = interpreted().discipline.engine("sglang").iterate
        assert broken(check_rules(iterate, histories=20)) == {}
        assert broken(check_rules(iterate, histories=20, windows=True)) != {}


def test_the_engine_itself_keeps_every_rule() -> None:
    assert broken(check_bundled("vllm-v1", histories=40)) == {}


def test_theory_is_met() -> None:
    findings = check_oracles()
    assert len(findings) == 4
    assert broken(findings) == {}


def ended() -> Replica:
    history = random_history(3)
    r = history.replica()
    assert advance(r, history.tables, NEVER, 10**6) == IDLE
    check_end(r)
    return r


def test_an_end_that_is_none_is_told_by_rule_and_request() -> None:
    r = ended()
    request = int(np.flatnonzero(r.progress["status"] == FINISHED)[-1])
    r.progress["known"][request] -= 1
    with pytest.raises(Violation, match=f"tokens accounted for: step .* request {request}"):
        check_end(r)
    r.progress["status"][request] = 1
    with pytest.raises(Violation, match=f"every request ends: step .* request {request}"):
        check_end(r)


def test_blocks_that_are_not_given_back_are_told() -> None:
    r = ended()
    r.pool.counts[FREE_BLOCKS] -= 1
    with pytest.raises(Violation, match="free queue sound"):
        check_end(r)
    # a block that only its reference count keeps
    r = ended()
    r.pool.blocks["references"][1] += 1
    with pytest.raises(Violation, match="no block leaked"):
        check_end(r)


def test_time_that_does_not_add_up_is_told() -> None:
    r = ended()
    checker = Checker(r)
    checker.after_step(r)
    r.at[SUM_HOST] += 1
    with pytest.raises(Violation, match="time accounted for"):
        checker.after_step(r)
    r = ended()
    finished = np.flatnonzero(r.progress["status"] == FINISHED)
    r.ledger["decode"][finished[0]] += 1
    with pytest.raises(Violation, match=f"time accounted for: step .* request {finished[0]}"):
        check_end(r)
