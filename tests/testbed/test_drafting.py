"""With a draft, greedy answers stay those of the target alone, whatever is accepted, and steps become fewer."""

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

from simkit.engine.drafts import accepted_drafts
from simkit.engine.state import Limits
from simkit.testbed import generation
from simkit.testbed.decoder import Decoder, random_decoder
from simkit.testbed.drafting import Drafting
from simkit.testbed.executor import Executor
from simkit.testbed.inputs import StepInputs
from simkit.testbed.measured import MeasuredRun
from simkit.testbed.prompts import prompt_tokens
from simkit.testbed.serving import serve_measured
from simkit.testbed.shape import DecoderShape
from simkit.testbed.wall_clock import Clock
from simkit.workloads.workload import Prefixes, Workload

SMALL = DecoderShape(hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=24, vocab=499)


@pytest.fixture(scope="module")
def few() -> Workload:
    """Six requests, four of which begin with the same two blocks."""
    shared = [2, 2, 3, 0, 2, 0]
    return Workload(
        name="few",
        arrival_us=np.zeros(6, dtype=np.int64),
        prompt_tokens=np.array([17, 9, 30, 1, 12, 21], dtype=np.int32),
        output_tokens=np.array([12, 20, 6, 15, 9, 11], dtype=np.int32),
        prefixes=Prefixes(4, np.concatenate(([0], np.cumsum(shared))), np.concatenate([np.arange(n) for n in shared])),
    )


@pytest.fixture(scope="module")
def answers(decoder: Decoder, few: Workload, brute_force: Callable[..., list[int]]) -> list[np.ndarray]:
    """[requests] prompt and right answer."""
    prompts = prompt_tokens(few, decoder.shape.vocab)
    outputs = few.output_tokens.tolist()
    return [np.array([*p, *brute_force(decoder, p, n)]) for p, n in zip(prompts, outputs, strict=True)]


@pytest.fixture(scope="module")
def serve(
    few: Workload, executor: Callable[..., Executor], limits: Callable[..., Limits], tick_clock: type[Clock]
) -> Callable[..., MeasuredRun]:
    """`serve(k, acceptance, oracle)`: the few with k drafts a step."""
    draft = random_decoder(SMALL, seed=1, dtype="float64")

    def serve(
        k: int, acceptance: float, oracle: list[np.ndarray] | None = None, blocks: int = 200, **settings: object
    ) -> MeasuredRun:
        rules = limits(blocks, speculative_tokens=k, acceptance=acceptance, **settings)
        drafting = Drafting(executor(blocks, draft), oracle)
        return serve_measured(few, executor(blocks), rules, drafting=drafting, clock=tick_clock)

    return serve


@pytest.mark.parametrize("acceptance", [0.0, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("k", [1, 3])
def test_answers_are_the_targets_own(
    serve: Callable[..., MeasuredRun], answers: list[np.ndarray], few: Workload, k: int, acceptance: float
) -> None:
    run = serve(k, acceptance, answers)
    assert run.failure == ""
    for row, prompt in enumerate(few.prompt_tokens.tolist()):
        assert run.outputs[row].tolist() == answers[row][prompt:].tolist()
        assert len(run.token_ns[row]) == len(run.outputs[row])


@pytest.mark.parametrize("caching", [False, True])
def test_after_preemption_too(
    serve: Callable[..., MeasuredRun], answers: list[np.ndarray], few: Workload, caching: bool
) -> None:
    run = serve(3, 0.7, answers, blocks=18, enable_prefix_caching=caching, tokens=40)
    assert run.failure == ""
    assert run.result.requests.preemptions.sum() > 0
    for row, prompt in enumerate(few.prompt_tokens.tolist()):
        assert run.outputs[row].tolist() == answers[row][prompt:].tolist()


@pytest.mark.parametrize("engine", ["vllm-0.28", "vllm-0.29", "vllm-0.30"])
def test_with_empty_drafts_too(
    serve: Callable[..., MeasuredRun], answers: list[np.ndarray], few: Workload, engine: str
) -> None:
    """Two at a time: who comes behind a cached prefix, or with a prompt of one token, gets some."""
    run = serve(3, 0.6, answers, enable_prefix_caching=True, requests=2, engine=engine)
    assert run.failure == ""
    assert any(
        tokens == 4 and before + 1 == few.prompt_tokens[row] for step in run.steps for row, tokens, before in step.batch
    )
    for row, prompt in enumerate(few.prompt_tokens.tolist()):
        assert run.outputs[row].tolist() == answers[row][prompt:].tolist()


@pytest.mark.parametrize("engine", ["vllm-0.22", "vllm-0.32", "vllm-0.33"])
@pytest.mark.parametrize("method", ["eagle", "draft_model"])
def test_with_drafts_of_other_kinds_too(
    serve: Callable[..., MeasuredRun], answers: list[np.ndarray], few: Workload, method: str, engine: str
) -> None:
    """In little memory: blocks for what is proposed, prefixes without their last block, some budget less."""
    settings = {"enable_prefix_caching": True, "speculative_method": method, "engine": engine}
    run = serve(3, 0.7, answers, blocks=18, tokens=40, **settings)
    assert run.failure == ""
    assert run.limits.lookahead_tokens == 3
    assert run.result.requests.preemptions.sum() > 0
    for row, prompt in enumerate(few.prompt_tokens.tolist()):
        assert run.outputs[row].tolist() == answers[row][prompt:].tolist()


def test_with_noise_for_drafts_as_many_count_as_are_drawn(serve: Callable[..., MeasuredRun], few: Workload) -> None:
    run = serve(3, 0.7)
    for row, (prompt, output) in enumerate(zip(few.prompt_tokens.tolist(), few.output_tokens.tolist(), strict=True)):
        known = prompt + 1
        checks = 0
        while known < prompt + output:
            known += 1 + accepted_drafts(run.limits, row, known, 3)
            checks += 1
        beyond = [step for step in run.steps if any(r == row and before >= prompt for r, _, before in step.batch)]
        assert len(beyond) == checks
    assert [len(output) for output in run.outputs] == few.output_tokens.tolist()


def test_the_draft_reads_everything_once_and_proposes_k_times(
    serve: Callable[..., MeasuredRun], few: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft's own passes: one with the step's new tokens, then one a further proposal."""
    passes: list[list[int]] = []
    from simkit.testbed import drafting

    build = drafting.step_inputs

    def counted(*arguments: object) -> StepInputs:
        step = build(*arguments)
        passes.append([len(step.tokens), len(step.sampled)])
        return step

    monkeypatch.setattr(drafting, "step_inputs", counted)
    serve(3, 1.0)
    # nothing is read twice where all is accepted: the prompts, and all that became part of an answer but its end
    total = int((few.prompt_tokens + few.output_tokens).sum())
    warm_up = 61 + 3 + 3
    assert total - 4 * 6 <= sum(tokens for tokens, _ in passes) <= total + warm_up + 3 * 6


def test_an_off_by_one_in_checking_is_caught(
    serve: Callable[..., MeasuredRun], answers: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the checks one too early: the target then seems to disagree with right drafts."""
    build = generation.step_inputs

    def wrong(*arguments: object) -> StepInputs:
        step = build(*arguments)
        return step._replace(sampled=np.maximum(step.sampled - 1, 0))

    monkeypatch.setattr(generation, "step_inputs", wrong)
    with pytest.raises(AssertionError, match="is right"):
        serve(3, 0.8, answers)
