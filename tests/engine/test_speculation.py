"""Speculative decoding on the virtual clock: k-token steps, drawn acceptance, against closed forms."""

import numpy as np
import pytest

from simkit.engine.checked_run import checked_run
from simkit.engine.drafts import accepted_drafts, draw
from simkit.engine.histories import History, drafted_history, random_history
from simkit.engine.interpreted import Interpreted
from simkit.engine.loop import IDLE, advance, iterate
from simkit.engine.replica import new_replica
from simkit.engine.selftest import state_bytes
from simkit.engine.settings import EngineSettings
from simkit.engine.simulate import simulate
from simkit.engine.state import ABORT, FINISHED, FREE_BLOCKS, NEVER, REQUEST, Limits, Replica, records
from simkit.errors import InputError
from simkit.metrics.result import WATERFALL, RunResult
from simkit.models.steptables import constant_tables
from simkit.workloads.workload import Workload


def limits(k: int, acceptance: float | None, **settings: object) -> Limits:
    fixed = {
        "async_scheduling": False,
        "enable_prefix_caching": False,
        "speculative_tokens": k,
        "acceptance": acceptance,
    }
    return EngineSettings.model_validate(fixed | settings).limits(2000, 20_000, 256, 8)


def one(output: int, arrivals: int = 1) -> Workload:
    return Workload(
        name="answers",
        arrival_us=np.zeros(arrivals, dtype=np.int64),
        prompt_tokens=np.full(arrivals, 10, dtype=np.int32),
        output_tokens=np.full(arrivals, output, dtype=np.int32),
    )


def served(workload: Workload, rules: Limits, **times: float) -> RunResult:
    return simulate(workload, rules, constant_tables(256, 8, **times), 2000)


@pytest.mark.parametrize("settings", [{}, {"speculative_method": "eagle", "async_scheduling": True}])
@pytest.mark.parametrize(("k", "acceptance"), [(1, 0.7), (3, 0.8), (4, 0.5), (7, 0.9), (3, 0.0), (3, 1.0)])
def test_tokens_a_step_match_the_closed_form(k: int, acceptance: float, settings: dict[str, object]) -> None:
    """(1 - a^(k+1)) / (1 - a), Leviathan et al. 2023, equation 1."""
    output = 18_000
    result = served(one(output), limits(k, acceptance, **settings))
    expected = k + 1.0 if acceptance == 1.0 else (1 - acceptance ** (k + 1)) / (1 - acceptance)
    # the first token is the prompt's
    tokens_a_step = (output - 1) / (result.steps - 1)
    # a mean of some thousand steps of at most k + 1 tokens
    error = (k + 1) / np.sqrt(result.steps) if 0 < acceptance < 1 else 1e-3
    assert tokens_a_step == pytest.approx(expected, abs=2 * error)
    assert result.requests.generated_tokens.tolist() == [output]


def test_a_step_costs_its_drafts() -> None:
    rules = limits(3, 1.0, draft_step_ms=0.002, draft_request_ms=0.001)
    result = served(one(9, arrivals=2), rules, step_ns=1_000_000.0)
    # the prompts and one token of each, then 4 tokens a step: 2 more steps, with 2 requests of drafts each
    assert result.steps == 3
    assert result.end_ns == 3 * 1_000_000 + 2 * (2_000 + 2 * 1_000)


def test_draws_are_uniform_and_independent() -> None:
    values = np.array(
        [[draw(seed, request, place) for place in range(200)] for seed in (0, 1) for request in range(50)]
    )
    flat = values.ravel()
    # Kolmogorov and Smirnov's distance at 1 % is 1.63 / sqrt(n)
    ranks = np.sort(flat)
    assert np.abs(ranks - (np.arange(len(flat)) + 0.5) / len(flat)).max() < 1.63 / np.sqrt(len(flat))
    for other in (values[:, 1:], np.roll(values, 1, axis=0)[:, 1:]):
        assert abs(np.corrcoef(values[:, :-1].ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(values[:, 1:].size)


def test_accepted_is_a_leading_run() -> None:
    rules = limits(5, 0.6)
    for known in range(300):
        taken = [draw(0, 3, known + i) < 0.6 for i in range(5)]
        assert accepted_drafts(rules, 3, known, 5) == [*taken, False].index(False)


def test_when_and_with_whom_a_request_runs_does_not_change_what_is_accepted() -> None:
    alone, crowd = served(one(300), limits(3, 0.7)), served(one(300, arrivals=6), limits(3, 0.7))
    assert alone.steps <= crowd.steps
    assert (crowd.requests.generated_tokens == 300).all()


def with_drafts(seed: int) -> History:
    """A random history served with drafts, first come first served in one step at a time."""
    history = random_history(seed)
    rules = history.limits._replace(
        pipeline_depth=1,
        speculative_tokens=1 + seed % 4,
        acceptance=0.25 * (seed % 5),
        acceptance_seed=seed,
        draft_padding=seed % 3 + (seed % 3 > 0),
        registers_accepted=seed % 2 == 0,
    )
    return History(rules, history.requests, history.content_ids, history.aborts, history.num_blocks, history.tables)


def test_every_history_ends_with_all_tokens_and_no_block_held() -> None:
    for seed in range(60):
        replica = with_drafts(seed).replica()
        assert advance(replica, with_drafts(seed).tables, NEVER, 100_000) == IDLE
        over = replica.progress["status"] == FINISHED
        whole = np.minimum(replica.requests["prompt"] + replica.requests["output"], replica.limits.max_model_len)
        assert np.array_equal(replica.progress["known"][over], whole[over])
        assert replica.pool.counts[FREE_BLOCKS] == len(replica.pool.blocks) - 1


def test_compiled_and_interpreted_are_the_same(interpreted: Interpreted) -> None:
    for seed in range(8):
        history = with_drafts(seed)
        ours, theirs = history.replica(), history.replica()
        advance(ours, history.tables, NEVER, 100_000)
        interpreted.loop.advance(theirs, history.tables, NEVER, 100_000)
        assert state_bytes(ours) == state_bytes(theirs)


def test_time_is_booked_to_the_nanosecond() -> None:
    result = served(one(100, arrivals=8), limits(3, 0.6), step_ns=1000.0, token_ns=7.0)
    requests = result.requests
    parts = sum(getattr(requests, part) for part in WATERFALL)
    assert np.array_equal(parts, requests.finish_ns - requests.arrival_ns)


def test_without_drafts_nothing_changes() -> None:
    """A token a step, as ever; that the steps are vLLM's is what the conformance tests show."""
    none = served(one(50), limits(0, None), step_ns=1000.0)
    assert none.steps == 50


@pytest.mark.parametrize("seed", range(60))
def test_drafts_of_every_kind_keep_the_rules(seed: int) -> None:
    checked_run(drafted_history(seed), iterate)


def test_kinds_of_drafts_are_the_same_compiled_and_interpreted(interpreted: Interpreted) -> None:
    for seed in range(12):
        history = drafted_history(seed)
        ours, theirs = history.replica(), history.replica()
        advance(ours, history.tables, NEVER, 100_000)
        interpreted.loop.advance(theirs, history.tables, NEVER, 100_000)
        assert state_bytes(ours) == state_bytes(theirs)


def by_kind(method: str, engine: str, longest: int = 1000, batched: int = 256, **settings: object) -> Limits:
    drafts = {"speculative_tokens": 3, "acceptance": 1.0, "speculative_method": method, "async_scheduling": False}
    given = drafts | {"engine": engine, "block_size": 4, "enable_prefix_caching": False} | settings
    return EngineSettings.model_validate(given).limits(2000, longest, batched, 4)


def replica_of(rules: Limits, prompts: list[int], content: list[int] | None = None) -> Replica:
    """One request after the other; all of them begin with `content`, an id for each of its blocks."""
    rows = records(len(prompts), REQUEST)
    rows["arrival_ns"] = 1_000_000 * np.arange(len(prompts))
    rows["prompt"], rows["output"], rows["max_tokens"] = prompts, 9, 9
    ids = np.array(content or [], dtype=np.int64)
    rows["content_blocks"] = np.minimum(len(ids), np.array(prompts) // rules.block_size)
    return new_replica(rules, rows, ids, records(0, ABORT), 2000)


# 10 tokens of a prompt, then one that is known and 3 drafts a step, in blocks of 4
@pytest.mark.parametrize(
    ("method", "engine", "held"),
    [
        ("ngram", "vllm-0.32", [3, 4]),
        ("eagle", "vllm-0.32", [4, 5]),
        ("mtp", "vllm-0.23", [4, 5]),
        # who is admitted gets no more than it computes
        ("eagle3", "vllm-0.22", [3, 5]),
        ("draft_model", "vllm-0.16", [3, 5]),
    ],
)
def test_blocks_reach_as_far_as_a_draft_with_kv_of_its_own_proposes(method: str, engine: str, held: list[int]) -> None:
    rules = by_kind(method, engine)
    replica = replica_of(rules, [10])
    tables = constant_tables(256, 4)
    seen = []
    for _ in held:
        iterate(replica, tables)
        seen.append(int(replica.progress["held"][0]))
    assert seen == held


def test_blocks_reach_no_further_than_the_longest_context() -> None:
    rules = by_kind("eagle", "vllm-0.32", longest=16)
    replica = replica_of(rules, [14])
    iterate(replica, constant_tables(256, 4))
    assert replica.progress["held"][0] == 4


# a prompt of 3 blocks and 1 token that comes again, and one that is as long as its blocks
@pytest.mark.parametrize(
    ("method", "engine", "found"),
    [
        ("ngram", "vllm-0.32", [0, 12, 8]),
        ("draft_model", "vllm-0.32", [0, 12, 8]),
        ("eagle", "vllm-0.32", [0, 8, 4]),
        ("eagle", "vllm-0.33", [0, 12, 8]),
    ],
)
def test_a_draft_that_reads_hidden_states_gives_up_the_last_block_found(
    method: str, engine: str, found: list[int]
) -> None:
    rules = by_kind(method, engine, enable_prefix_caching=True)
    replica = replica_of(rules, [13, 13, 12], content=[7, 8, 9])
    assert advance(replica, constant_tables(256, 4, step_ns=10.0), NEVER, 1000) == IDLE
    assert replica.progress["hit"].tolist() == found


@pytest.mark.parametrize(("engine", "planned"), [("vllm-0.32", 2), ("vllm-0.33", 1)])
def test_a_block_is_reusable_before_the_token_after_it_is_known_or_not(engine: str, planned: int) -> None:
    """A prompt of 2 blocks: while its step runs, and when its first token is out."""
    rules = by_kind("eagle", engine, enable_prefix_caching=True)
    replica = replica_of(rules, [8], content=[7, 8])
    iterate(replica, constant_tables(256, 4))
    assert replica.batches["distinct"][0] == planned
    assert replica.progress["hashed"][0] == 2


@pytest.mark.parametrize(
    ("engine", "given"),
    [("vllm-0.16", [10, 10]), ("vllm-0.17", [10, 6]), ("vllm-0.27", [10, 6]), ("vllm-0.28", [10, 8])],
)
def test_a_draft_model_takes_some_of_a_steps_budget(engine: str, given: list[int]) -> None:
    """Of 20 tokens: none, one for each of 4 that may run, one for each of 2 that do."""
    replica = replica_of(by_kind("draft_model", engine, batched=20), [10, 10])
    replica.requests["arrival_ns"] = 0
    iterate(replica, constant_tables(20, 4))
    assert replica.entries["tokens"][0, :2].tolist() == given


@pytest.mark.parametrize(
    ("settings", "batched", "says"),
    [
        ({"speculative_method": "draft_model", "engine": "vllm-0.20"}, 8, "drafts by draft_model take 8 of a step's"),
        ({"speculative_method": "eagle", "engine": "vllm-0.33"}, 3, "drafts by eagle take 3 of a step's tokens"),
        (
            {"speculative_method": "draft_model", "enable_chunked_prefill": False},
            64,
            "less 1 for drafts, smaller than max_model_len=64 without chunked prefill",
        ),
    ],
)
def test_a_step_too_small_for_its_drafts_is_refused(settings: dict[str, object], batched: int, says: str) -> None:
    drafts = {"speculative_tokens": 3, "acceptance": 0.5, "async_scheduling": False}
    with pytest.raises(InputError, match=says):
        EngineSettings.model_validate(drafts | settings).limits(2000, 64, batched, 8)
    EngineSettings.model_validate(drafts | settings).limits(2000, 64, batched + 1, 8)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"speculative_method": "eagle"}, "speculative_method=eagle: goes with speculative_tokens"),
        ({"speculative_method": "mtp", "discipline": "sarathi"}, "discipline sarathi does not have it"),
        ({"speculative_tokens": 3}, "acceptance is missing"),
        ({"speculative_tokens": 3, "acceptance": 0.5}, "set async_scheduling: false"),
        ({"acceptance": 0.5}, "acceptance=0.5: goes with speculative_tokens"),
        ({"draft_step_ms": 1.0}, "draft_step_ms=1.0: goes with speculative_tokens"),
        (
            {"speculative_tokens": 2, "acceptance": 0.5, "async_scheduling": False, "discipline": "sglang"},
            "discipline sglang does not have it",
        ),
    ],
)
def test_half_a_speculation_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        EngineSettings.model_validate(settings).dialect()
