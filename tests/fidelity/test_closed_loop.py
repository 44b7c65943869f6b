"""A closed loop against its closed form."""

from dataclasses import replace

import pytest

from simkit.engine.deployment import Deployment, resolve
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.fidelity.closed_loop import ClosedLoop, loop_workload, replay_loop
from simkit.models.front_end import NO_FRONT_END, FrontEndLaw
from simkit.models.steptables import constant_tables


def test_one_client_waits_for_its_own_steps_only() -> None:
    """Steps of 10 ms: a prompt takes one, an output token one; the next prompt starts when the answer has ended."""
    engine = EngineSettings(max_model_len=256, max_num_seqs=8, async_scheduling=False)
    spec = resolve(Deployment(model="llama-3.2-1b", device="h100", engine=engine))
    tables = constant_tables(spec.limits.max_num_batched_tokens, spec.limits.max_running, step_ns=10e6)
    spec = replace(spec, tables=tables, front_end=NO_FRONT_END)
    found = replay_loop(spec, ClosedLoop(1, 5, 100, 11))
    assert found.ttft_s == pytest.approx(0.010, rel=1e-6)
    assert found.tpot_s == pytest.approx(0.010, rel=1e-6)
    with_client = replay_loop(replace(spec, front_end=FrontEndLaw(2e6, 10e3)), ClosedLoop(1, 5, 100, 11))
    assert with_client.ttft_s == pytest.approx(0.013, rel=1e-6)
    assert with_client.tpot_s == pytest.approx(0.010, rel=1e-6)


@pytest.mark.parametrize(("discipline", "between_s"), [("vllm-v1", 9 * 0.010), ("sglang", 9.5 * 0.010)])
def test_the_engines_own_discipline_schedules_the_loop(discipline: str, between_s: float) -> None:
    """Two prompts of 60 tokens in steps of 64 tokens and 10 ms: each prompt needs a step, the second one's first token
    comes with the second step, and nine more tokens follow.

    vLLM decodes the first request beside the second prompt. SGLang computes prompts first and alone, so that the first
    request's nine tokens take ten steps, the second one's nine.
    """
    engine = EngineSettings(
        max_model_len=128, max_num_seqs=8, max_num_batched_tokens=64, async_scheduling=False, discipline=discipline
    )
    spec = resolve(Deployment(model="llama-3.2-1b", device="h100", engine=engine))
    tables = constant_tables(spec.limits.max_num_batched_tokens, spec.limits.max_running, step_ns=10e6)
    found = replay_loop(replace(spec, tables=tables, front_end=NO_FRONT_END), ClosedLoop(2, 2, 60, 10))
    assert found.ttft_s == pytest.approx(0.015, rel=1e-6)
    assert found.tpot_s == pytest.approx(between_s / 9, rel=1e-6)


def test_lengths_are_drawn_between_the_shortest_and_the_longest() -> None:
    workload = loop_workload(ClosedLoop(4, 2000, 1000, 100, 0.8))
    assert workload.prompt_tokens.min() == 800
    assert workload.prompt_tokens.max() == 1000
    assert workload.prompt_tokens.mean() == pytest.approx(900, abs=5)


def test_more_in_flight_than_the_engine_runs_is_refused() -> None:
    engine = EngineSettings(max_model_len=256, max_num_seqs=2)
    spec = resolve(Deployment(model="llama-3.2-1b", device="h100", engine=engine))
    with pytest.raises(InputError, match="concurrency 4"):
        replay_loop(spec, ClosedLoop(4, 8, 10, 10))
