"""What a measured run's names stand for."""

import pytest

from simkit.errors import InputError
from simkit.fidelity.deployments import deployment_of, known_model, precision_note
from simkit.fidelity.measured_runs import MeasuredRun
from simkit.models.catalog import catalog_entry, known_models, load_model
from tests.fidelity.conftest import run


@pytest.mark.parametrize(
    ("repository", "model"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic", "llama-4-scout"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("01-ai/Yi-34B", "yi-34b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("Qwen/Qwen3-30B-A3B-FP8", "qwen3-30b-a3b"),
        ("Qwen/Qwen3-30B-A3B-Thinking-2507-FP8", "qwen3-30b-a3b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("RedHatAI/Llama-3.3-70B-Instruct-quantized.w8a8", "llama-3.1-70b"),
        ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "llama-3.1-70b"),
        ("deepseek-ai/DeepSeek-V3-Base", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek-v3"),
    ],
)
def test_a_repository_is_known_whoever_published_it(repository: str, model: str) -> None:
    assert load_model(known_model(repository)).name == model


# DeepSeek-V3.2 has another attention than V3, and no version of a model is another one's
@pytest.mark.parametrize(
    "repository", ["somebody/Nothing-7B-Instruct", "deepseek-ai/DeepSeek-V3.2", "deepseek-ai/DeepSeek-V4", "deepseek"]
)
def test_an_unknown_model_is_an_input_error(repository: str) -> None:
    with pytest.raises(InputError, match="is not known"):
        known_model(repository)


@pytest.mark.parametrize("name", known_models())
def test_no_name_of_a_model_stands_for_another(name: str) -> None:
    entry = catalog_entry(name)
    for known in (entry.name, entry.repository, *entry.aliases):
        assert load_model(known_model(f"somebody/{known.rsplit('/', 1)[-1]}")).name == name


@pytest.mark.parametrize(
    ("repository", "stated", "stored"),
    [
        ("Qwen/Qwen3-32B", None, None),
        ("Qwen/Qwen3-32B-AWQ", None, "int4"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", None, "int8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", None, "fp8"),
        ("RedHatAI/Llama-3.3-70B-Instruct-quantized.w4a16", None, "int4"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "FP16", None),
        ("Qwen/Qwen3-32B", "fp8", "fp8"),
    ],
)
def test_the_precision_is_the_stated_one_else_what_the_name_says(
    repository: str, stated: str | None, stored: str | None
) -> None:
    measured = MeasuredRun.model_validate(run(model=repository, weight_precision=stated, tensor_parallel=4))
    assert deployment_of(measured).weights == stored


def test_a_precision_that_the_name_contradicts_is_pointed_out() -> None:
    quantised = "nvidia/Llama-3.1-8B-Instruct-FP8"
    notes = [
        precision_note(MeasuredRun.model_validate(run(model=quantised, weight_precision=stated)))
        for stated in ("FP16", "FP8", None)
    ]
    assert notes == ["weight_precision=FP16 is taken, though the model's name says fp8", None, None]


def test_engine_arguments_that_a_run_names_are_used() -> None:
    arguments = {
        "tensor_parallel": 2,
        "pipeline_parallel": 2,
        "enable_expert_parallel": True,
        "kv_cache_dtype": "fp8_e4m3",
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        "enforce_eager": True,
        "max_num_batched_tokens": 8192,
    }
    found = deployment_of(MeasuredRun.model_validate(run(model="mistralai/Mixtral-8x7B-v0.1", **arguments)))
    assert (found.layout.tensor, found.layout.pipeline, found.layout.expert) == (2, 2, 2)
    assert found.kv == "fp8"
    engine = found.engine
    assert (engine.enable_prefix_caching, engine.enable_chunked_prefill, engine.enforce_eager) == (False, False, True)


def test_a_model_of_less_context_than_the_default_runs() -> None:
    found = deployment_of(MeasuredRun.model_validate(run(model="facebook/opt-125m")))
    assert found.engine.max_model_len == 2048


def test_the_engine_is_the_one_of_its_time() -> None:
    deployment = deployment_of(MeasuredRun.model_validate(run(kv_blocks=5000, weight_precision="FP8")))
    engine = deployment.engine
    assert engine.async_scheduling
    assert engine.enable_prefix_caching
    assert engine.max_model_len == 4096
    assert engine.num_gpu_blocks_override == 5000
    assert deployment.weights == "fp8"


def test_blocks_of_whole_contexts_are_one_in_each_group() -> None:
    """Scout's 12 layers that see everything and 36 that see a chunk are four groups of one pool (vLLM pull 21761)."""
    scout = "RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic"
    found = deployment_of(MeasuredRun.model_validate(run(model=scout, kv_blocks=8253)))
    assert found.engine.num_gpu_blocks_override == 4 * 8253
    assert deployment_of(MeasuredRun.model_validate(run(model=scout))).engine.num_gpu_blocks_override is None


@pytest.mark.parametrize(("change", "said"), [({"weight_precision": "FP7"}, "FP7"), ({"data_parallel": 2}, "replica")])
def test_what_is_not_rebuilt_is_refused_with_the_reason(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        deployment_of(MeasuredRun.model_validate(run(**change)))
