"""However a request is served, its greedy tokens are those of the decoder run by brute force."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

from simkit.engine.settings import EngineSettings
from simkit.engine.state import Limits
from simkit.testbed import generation
from simkit.testbed.decoder import Decoder, random_decoder
from simkit.testbed.executor import Executor
from simkit.testbed.inputs import NOTHING_FED, StepInputs, step_inputs
from simkit.testbed.measured import MeasuredRun
from simkit.testbed.prompts import prompt_tokens
from simkit.testbed.replay import replay
from simkit.testbed.serving import serve_measured
from simkit.testbed.wall_clock import Clock
from simkit.workloads.transform import selected
from simkit.workloads.workload import Prefixes, Workload

MakeLimits = Callable[..., Limits]
Serve = Callable[..., MeasuredRun]
BruteForce = Callable[..., list[int]]


def workload_of(prompt: list[int], output: list[int], shared: list[int] | None = None) -> Workload:
    """Requests that arrive together; `shared[i]` leading blocks of 4 tokens are the same for all."""
    named = shared or [0] * len(prompt)
    prefixes = Prefixes(4, np.concatenate(([0], np.cumsum(named))), np.concatenate([np.arange(n) for n in named]))
    return Workload(
        name="few",
        arrival_us=np.zeros(len(prompt), dtype=np.int64),
        prompt_tokens=np.array(prompt, dtype=np.int32),
        output_tokens=np.array(output, dtype=np.int32),
        prefixes=prefixes if shared else None,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["one step at a time", "asynchronous"])
def limits(request: pytest.FixtureRequest) -> MakeLimits:
    """`limits(num_blocks, **settings)` of conftest, with steps one after the other and with two under way."""

    def make(num_blocks: int = 200, tokens: int = 256, requests: int = 8, **settings: object) -> Limits:
        fixed = {"block_size": 4, "async_scheduling": request.param, "enable_prefix_caching": False}
        return EngineSettings.model_validate(fixed | settings).limits(num_blocks, 64, tokens, requests)

    return make


@pytest.fixture(scope="module")
def few() -> Workload:
    """Six requests, four of which begin with the same two blocks."""
    return workload_of([17, 9, 30, 1, 12, 21], [12, 20, 6, 15, 9, 11], [2, 2, 3, 0, 2, 0])


@pytest.fixture(scope="module")
def expected(decoder: Decoder, few: Workload, brute_force: BruteForce) -> list[list[int]]:
    """The tokens by brute force; they vary, so that an error has something to show in."""
    prompts = prompt_tokens(few, decoder.shape.vocab)
    tokens = [brute_force(decoder, p, n) for p, n in zip(prompts, few.output_tokens.tolist(), strict=True)]
    assert all(len(set(each)) > len(each) / 3 for each in tokens)
    return tokens


@pytest.fixture(scope="module")
def served(executor: Callable[..., Executor], tick_clock: type[Clock]) -> Serve:
    """`served(workload, limits, num_blocks)`: the run, after which nothing is held."""

    def serve(workload: Workload, limits: Limits, num_blocks: int = 200, **options: object) -> MeasuredRun:
        run = serve_measured(
            workload, executor(num_blocks, options.pop("decoder", None)), limits, clock=tick_clock, **options
        )
        assert not run.failure
        assert run.result.blocks_free_at_end == run.result.blocks
        assert replay(run).identical == len(run.steps)
        return run

    return serve


def tokens(run: MeasuredRun) -> list[list[int]]:
    return [output.tolist() for output in run.outputs]


def test_alone(decoder: Decoder, few: Workload, expected: list[list[int]], limits: MakeLimits, served: Serve) -> None:
    prompts = prompt_tokens(few, decoder.shape.vocab)
    for row, prompt in enumerate(prompts):
        one = selected(few, np.array([row]))
        run = served(one, limits(), prompts=[prompt])
        assert tokens(run) == [expected[row]]


def test_in_a_batch(
    decoder: Decoder, few: Workload, expected: list[list[int]], limits: MakeLimits, served: Serve
) -> None:
    run = served(few, limits())
    assert run.result.batch_requests.maximum == 6
    assert tokens(run) == expected


def test_in_chunks(
    decoder: Decoder, few: Workload, expected: list[list[int]], limits: MakeLimits, served: Serve
) -> None:
    run = served(few, limits(tokens=5))
    assert max(sum(new for _, new, _ in step.batch) for step in run.steps) == 5
    assert any(new > 1 and before > 0 for step in run.steps for _, new, before in step.batch)
    assert tokens(run) == expected


@pytest.mark.parametrize("caching", [False, True])
def test_after_preemption(
    decoder: Decoder, few: Workload, expected: list[list[int]], limits: MakeLimits, served: Serve, caching: bool
) -> None:
    run = served(few, limits(18, enable_prefix_caching=caching), 18)
    assert run.result.requests.preemptions.sum() > 0
    assert run.result.recomputed_tokens > 0
    assert tokens(run) == expected


@pytest.mark.parametrize("budget", [256, 11])
def test_on_a_cached_prefix(
    decoder: Decoder, few: Workload, expected: list[list[int]], limits: MakeLimits, served: Serve, budget: int
) -> None:
    run = served(few, limits(tokens=budget, requests=2, enable_prefix_caching=True))
    assert run.result.requests.hit_tokens.tolist()[1:3] == [8, 8]
    assert tokens(run) == expected


def test_on_a_prefix_that_another_computes_in_the_same_step(
    decoder: Decoder, limits: MakeLimits, brute_force: BruteForce, served: Serve
) -> None:
    twins = workload_of([14, 14], [10, 10], [3, 3])
    run = served(twins, limits(enable_prefix_caching=True))
    assert run.steps[0].batch == ((0, 14, 0), (1, 2, 12))
    prompts = prompt_tokens(twins, decoder.shape.vocab)
    assert tokens(run) == [brute_force(decoder, prompt, 10) for prompt in prompts]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_way(
    decoder: Decoder, limits: MakeLimits, brute_force: BruteForce, served: Serve, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, 5))
    prompt = data.draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    output = data.draw(st.lists(st.integers(1, 12), min_size=n, max_size=n))
    shared = [data.draw(st.integers(0, length // 4)) for length in prompt]
    budget, blocks = data.draw(st.integers(1, 60)), data.draw(st.integers(17, 40))
    workload = workload_of(prompt, output, shared)
    caching = data.draw(st.booleans())
    run = served(workload, limits(blocks, tokens=budget, enable_prefix_caching=caching), blocks)
    prompts = prompt_tokens(workload, decoder.shape.vocab)
    assert tokens(run) == [brute_force(decoder, p, k) for p, k in zip(prompts, output, strict=True)]


def test_in_single_precision(decoder: Decoder, few: Workload, limits: MakeLimits, served: Serve) -> None:
    single = random_decoder(decoder.shape, seed=0, dtype="float32")
    assert tokens(served(few, limits(), decoder=single)) == tokens(served(few, limits(tokens=5), decoder=single))


def next_block(step: StepInputs) -> StepInputs:
    return step._replace(decodes=step.decodes._replace(blocks=np.roll(step.decodes.blocks, 1, axis=1)))


def one_position_late(step: StepInputs) -> StepInputs:
    """Of decodes only: rotary attention sees differences, so shifting everybody would rightly change nothing."""
    late = np.zeros_like(step.positions)
    late[step.decodes.rows] = 1
    return step._replace(positions=step.positions + late)


def one_token_short(step: StepInputs) -> StepInputs:
    return step._replace(decodes=step.decodes._replace(context=step.decodes.context - 1))


def one_slot_late(step: StepInputs) -> StepInputs:
    return step._replace(slots=step.slots + 1)


def chunk_past_one_short(step: StepInputs) -> StepInputs:
    chunks = tuple(c._replace(past=c.past - 1) if c.past else c for c in step.chunks)
    return step._replace(chunks=chunks)


@pytest.mark.parametrize(
    "mistake", [next_block, one_position_late, one_token_short, one_slot_late, chunk_past_one_short]
)
def test_off_by_one_is_caught(
    decoder: Decoder,
    few: Workload,
    expected: list[list[int]],
    limits: MakeLimits,
    served: Serve,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[[StepInputs], StepInputs],
) -> None:
    def wrong(*arguments: object) -> StepInputs:
        return mistake(step_inputs(*arguments))

    monkeypatch.setattr(generation, "step_inputs", wrong)
    assert tokens(served(few, limits(tokens=13))) != expected


def another_requests_token(step: StepInputs) -> StepInputs:
    return step._replace(fed=step.fed._replace(samples=np.roll(step.fed.samples, 1)))


def the_placeholder_itself(step: StepInputs) -> StepInputs:
    return step._replace(fed=NOTHING_FED)


@pytest.mark.parametrize("mistake", [another_requests_token, the_placeholder_itself])
def test_a_token_fed_wrongly_is_caught(
    few: Workload,
    expected: list[list[int]],
    limits: MakeLimits,
    served: Serve,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[[StepInputs], StepInputs],
) -> None:
    """Only where two steps are under way is anything fed."""
    rules = limits()
    monkeypatch.setattr(generation, "step_inputs", lambda *given: mistake(step_inputs(*given)))
    assert (tokens(served(few, rules)) == expected) == (rules.pipeline_depth == 1)


def test_shared_content_is_the_same_tokens(few: Workload) -> None:
    prompts = prompt_tokens(few, 499, seed=5)
    assert [len(prompt) for prompt in prompts] == few.prompt_tokens.tolist()
    assert np.array_equal(prompts[0][:8], prompts[2][:8])
    assert not np.array_equal(prompts[0][:8], prompts[5][:8])
    assert not np.array_equal(prompts[0][:8], prompt_tokens(few, 499, seed=6)[0][:8])
