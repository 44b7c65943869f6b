"""What proposing costs: against sums over its passes one by one, closed forms, and measured steps of vLLM."""

from pathlib import Path

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.draft_cost import draft_of, run_of
from simkit.engine.settings import EngineSettings
from simkit.engine.simulate import simulate
from simkit.errors import InputError
from simkit.metrics.result import RunResult
from simkit.models.attention_operators import decode_attention, prefill_attention
from simkit.models.calibrated import calibrated_law
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.draft_tables import head_operators, pass_operators, with_draft
from simkit.models.engine_law import engine_law
from simkit.models.kernel_laws import laws_of
from simkit.models.layout import Layout
from simkit.models.operators import Operator
from simkit.models.step_law import StepLaw, TableSizes, step_tables
from simkit.models.steptables import constant_tables, drafting_ns, interpolate
from simkit.workloads.workload import Workload

H100 = load_device("h100")
ONE = Layout()
SIZES = TableSizes(max_num_batched_tokens=2048, max_num_seqs=64, max_model_len=8192)


def drafting(tokens: int, method: str = "eagle", **more: object) -> EngineSettings:
    told = {"speculative_tokens": tokens, "speculative_method": method, "acceptance": 0.7}
    return EngineSettings.model_validate(told | {"max_model_len": 8192, "max_num_seqs": 64} | more)


def deployed(engine: EngineSettings, model: str = "llama-3.1-8b", tensor: int = 1, **more: object) -> ReplicaSpec:
    base = Deployment(model=model, device="h100", layout=Layout(tensor=tensor), sampling="plain", engine=engine)
    return resolve(base.model_copy(update=more))


def one_request(output: int, prompt: int = 100) -> Workload:
    return Workload(
        name="one",
        arrival_us=np.zeros(1, dtype=np.int64),
        prompt_tokens=np.array([prompt], dtype=np.int32),
        output_tokens=np.array([output], dtype=np.int32),
    )


def served(spec: ReplicaSpec, workload: Workload) -> RunResult:
    return simulate(workload, spec.limits, spec.tables, spec.num_blocks)


def law_of(arch: object) -> StepLaw:
    found = laws_of(H100)
    assert found is not None
    return calibrated_law(arch, H100, ONE, None, found[0], engine_law(), "plain")  # type: ignore[arg-type]


def total_ns(law: StepLaw, operators: list[Operator]) -> float:
    return sum(float(law.operator_ns(operator)[0]) for operator in operators)


# batches that have a CUDA graph of their own, and contexts on the tables' grid
@pytest.mark.parametrize(("requests", "context", "tokens"), [(1, 1024, 3), (8, 512, 1), (16, 2048, 7)])
@pytest.mark.parametrize("method", ["eagle", "eagle3", "mtp"])
def test_a_step_of_decodes_takes_its_passes_one_by_one(method: str, requests: int, context: int, tokens: int) -> None:
    spec = deployed(drafting(tokens, method))
    told = deployed(drafting(tokens, method, draft_step_ms=0.0))
    draft = spec.draft
    assert draft is not None
    law = law_of(draft.architecture)
    step = requests * (1 + tokens)
    contexts = np.array([float(requests * context)])
    expected = 0.0
    for number in range(tokens):
        seen = np.array([float(step if number == 0 else requests)])
        expected += total_ns(law, pass_operators(draft, ONE, seen, "bf16", first=number == 0))
        batch = np.array([float(requests)])
        expected += total_ns(law, decode_attention(draft.architecture, ONE, batch, contexts, False))
        expected += total_ns(law, head_operators(draft, ONE, batch))
    found = spec.tables.linear_ns[step] - told.tables.linear_ns[step] + drafting_ns(spec.tables, requests)
    for sign, tables in ((1, spec.tables), (-1, told.tables)):
        found += sign * interpolate(tables.decode_ns, requests, requests * context)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_chunk_is_read_by_the_draft_and_looked_back_on_by_each_later_pass() -> None:
    spec, told = deployed(drafting(4)), deployed(drafting(4, draft_step_ms=0.0))
    assert spec.draft is not None
    arch = spec.draft.architecture
    law = law_of(arch)
    chunk, past, one = np.array([512.0]), np.array([1536.0]), np.ones(1)
    expected = total_ns(law, prefill_attention(arch, ONE, chunk, past, "bf16", law.prefill_extra_keys))
    begun = total_ns(law, decode_attention(arch, ONE, one, np.zeros(1), False))
    expected += 3 * (total_ns(law, decode_attention(arch, ONE, one, chunk + past, False)) - begun)
    found = interpolate(spec.tables.prefill_ns, 512, 1536) - interpolate(told.tables.prefill_ns, 512, 1536)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_model_that_drafts_for_itself_takes_as_long_as_its_own_steps() -> None:
    arch = load_model("llama-3.1-8b")
    law = law_of(arch)
    tables = step_tables(law, arch, ONE, SIZES, None, "bf16")
    settings = drafting(1, "draft_model", speculative_model="llama-3.1-8b")
    draft = draft_of(settings, arch, ONE, None)
    assert draft is not None
    run = run_of(tables, draft, H100, ONE, SIZES, "bf16", calibrated=True)
    # the pause between steps is the engine's, and what sampling does beside the logits is not done
    assert np.allclose(run.first.linear_ns[1:], tables.linear_ns[1:] - law.gap_ns, rtol=1e-12)
    assert np.array_equal(run.first.decode_ns, tables.decode_ns)
    assert np.allclose(run.later_ns[1:], tables.linear_ns[1:65] - law.gap_ns, rtol=1e-12)
    assert np.all(run.first.sample_ns[1:] < tables.sample_ns[1:])


@pytest.mark.parametrize(("tokens", "acceptance", "cost"), [(1, 0.8, 0.1), (3, 0.7, 0.05), (5, 0.9, 0.3)])
def test_speed_up_of_one_request_is_the_known_formula(tokens: int, acceptance: float, cost: float) -> None:
    """(1 - a^(k+1)) / ((1 - a)(k c + 1)), Leviathan et al. 2023, theorem 3.8; c is a pass over a step of the target."""
    step_ns, output = 1e6, 18_000
    fixed = {"async_scheduling": False, "enable_prefix_caching": False}
    plain = EngineSettings.model_validate(fixed).limits(2000, 20_000, 256, 8)
    drafts = fixed | {"speculative_tokens": tokens, "acceptance": acceptance, "speculative_method": "eagle"}
    rules = EngineSettings.model_validate(drafts).limits(2000, 20_000, 256, 8)
    tables = constant_tables(256, 8, step_ns=step_ns)
    passes = np.where(np.arange(9) > 0, tokens * cost * step_ns, 0.0)
    alone = simulate(one_request(output), plain, tables, 2000)
    faster = simulate(one_request(output), rules, tables._replace(draft_ns=passes), 2000)
    expected = (1 - acceptance ** (tokens + 1)) / ((1 - acceptance) * (tokens * cost + 1))
    # a mean of some thousand steps of at most k + 1 tokens
    error = 2 * (tokens + 1) / np.sqrt(faster.steps) / (tokens * cost + 1)
    assert alone.end_ns / faster.end_ns == pytest.approx(expected, abs=error)


def test_speed_up_of_a_deployment_is_that_of_its_own_cost() -> None:
    """At one request the check of 4 tokens is a step like any other to 0.5 %, so that c is what the tables say."""
    plain = deployed(EngineSettings(max_model_len=8192, max_num_seqs=64))
    spec = deployed(drafting(3, "eagle", acceptance=0.75))
    output = 6_000
    alone, faster = served(plain, one_request(output)), served(spec, one_request(output))
    told = served(deployed(drafting(3, "eagle", acceptance=0.75, draft_step_ms=0.0)), one_request(output))
    cost = (faster.end_ns - told.end_ns) / 3 / told.end_ns
    expected = (1 - 0.75**4) / (0.25 * (3 * cost + 1))
    assert alone.end_ns / faster.end_ns == pytest.approx(expected, rel=0.03)
    assert 0.05 < cost < 0.12


# vLLM issue 20780 (July 2025): one H100, Llama-3.1-8B, one request at a time; k: (tokens a step, ms a token)
MEASURED_EAGLE = {2: (2.1, 4.37), 3: (2.29, 4.29), 4: (2.39, 4.48), 5: (2.43, 4.71), 6: (2.45, 4.94), 7: (2.47, 5.2)}


def test_steps_with_eagle_are_near_vllm_s() -> None:
    """15 % too short at most, where without the draft's passes they would be 25 to 47 %."""
    errors, without = [], []
    for tokens, (each, token_ms) in MEASURED_EAGLE.items():
        for told, kept in (({}, errors), ({"draft_step_ms": 0.0}, without)):
            tables = deployed(drafting(tokens, "eagle", **told)).tables
            step = 1 + tokens
            found = tables.linear_ns[step] + tables.sample_ns[step] + drafting_ns(tables, 1)
            kept.append((found + interpolate(tables.decode_ns, 1, 500)) / 1e6 / (each * token_ms) - 1)
    assert -0.15 < min(errors) <= max(errors) < 0
    assert max(without) < -0.24


def test_what_is_told_wins() -> None:
    spec = deployed(drafting(3, "eagle", draft_step_ms=0.5, draft_request_ms=0.25))
    none = deployed(EngineSettings(max_model_len=8192, max_num_seqs=64))
    assert (spec.limits.draft_ns, spec.limits.draft_request_ns) == (500_000, 250_000)
    assert len(spec.tables.draft_ns) == 0
    assert np.array_equal(spec.tables.linear_ns, none.tables.linear_ns)
    # but its memory is taken
    assert spec.num_blocks < none.num_blocks
    assert deployed(drafting(3, "eagle", num_gpu_blocks_override=1000)).num_blocks == 1000


def test_n_grams_cost_what_they_are_told() -> None:
    settings = drafting(3, "ngram", async_scheduling=False)
    spec, none = deployed(settings), deployed(EngineSettings(max_model_len=8192, max_num_seqs=64))
    assert spec.draft is None
    assert (len(spec.tables.draft_ns), spec.num_blocks, spec.limits.draft_ns) == (0, none.num_blocks, 0)


def test_the_last_stage_proposes() -> None:
    settings = drafting(3, "eagle", async_scheduling=False)
    spec = deployed(settings, layout=Layout(pipeline=2))
    told = deployed(settings.model_copy(update={"draft_step_ms": 0.0}), layout=Layout(pipeline=2))
    assert np.allclose(spec.tables.stage_linear_ns.sum(axis=0), spec.tables.linear_ns, rtol=1e-12)
    assert np.array_equal(spec.tables.stage_linear_ns[0], told.tables.stage_linear_ns[0])
    waits = served(spec, one_request(200)).end_ns - served(told, one_request(200)).end_ns
    assert waits > 0


def test_engines_that_share_experts_have_mtp_s_among_them() -> None:
    layout = Layout(data=8, expert=8)
    more = {"layout": layout, "device": "h200"}
    spec = deployed(drafting(1, "mtp"), model="deepseek-v3", **more)
    told = deployed(drafting(1, "mtp", draft_step_ms=0.0), model="deepseek-v3", **more)
    own = spec.tables.shared_linear_ns - told.tables.shared_linear_ns
    # 58 of the model's 61 layers have experts
    assert np.allclose(own[1:] * 58, told.tables.shared_linear_ns[1:], rtol=1e-9)


def test_a_step_says_what_its_draft_takes() -> None:
    note = deployed(drafting(3, "eagle3")).provenance_note
    assert "eagle3 of llama-3.1-8b (0.42e9 parameters of its own) takes" in note
    assert "ms of a step that checks 3 tokens of one request" in note
    assert "takes" not in deployed(drafting(3, "eagle3", draft_step_ms=0.0)).provenance_note


def test_more_tokens_cost_as_many_passes() -> None:
    tables = deployed(EngineSettings(max_model_len=8192, max_num_seqs=64)).tables
    arch = load_model("llama-3.1-8b")
    draft = draft_of(drafting(1), arch, ONE, None)
    assert draft is not None
    run = run_of(tables, draft, H100, ONE, SIZES, "bf16", calibrated=True)
    found = [with_draft(tables, run, tokens) for tokens in (1, 2, 5)]
    steps = [float(one.draft_ns[8] + interpolate(one.decode_ns, 8, 8192)) for one in found]
    assert (steps[2] - steps[1]) / 3 == pytest.approx(steps[1] - steps[0], rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"speculative_method": "draft_model"}, "speculative_method=draft_model: speculative_model is missing"),
        ({"speculative_method": "draft_model", "speculative_model": "nothing"}, "speculative_model=nothing: model"),
        ({"speculative_model": "llama-3.2-1b", "async_scheduling": False}, "ngram looks its drafts up"),
        ({"speculative_tokens": 0, "acceptance": None, "speculative_model": "gpt2"}, "goes with speculative_tokens"),
    ],
)
def test_a_draft_that_cannot_be_is_refused(settings: dict[str, object], words: str) -> None:
    given = {"speculative_tokens": 3, "acceptance": 0.7} | settings
    with pytest.raises(InputError, match=f"deployment.engine.*{words}"):
        deployed(EngineSettings.model_validate(given))


def test_a_config_of_one_s_own_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 2048, "num_hidden_layers": 1, '
        '"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 2048}'
    )
    small = deployed(drafting(3, "eagle", speculative_model=str(tmp_path)))
    usual = deployed(drafting(3, "eagle"))
    assert small.memory.draft_bytes < usual.memory.draft_bytes
    assert small.tables.draft_ns[1] < usual.tables.draft_ns[1]
    assert small.memory.block_bytes == usual.memory.block_bytes
