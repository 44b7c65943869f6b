"""What a measured run's names stand for."""

import pytest

from simkit.errors import InputError
from simkit.fidelity.deployments import deployment_of, known_model
from simkit.fidelity.measured_runs import MeasuredRun
from simkit.models.catalog import load_model
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
    ],
)
def test_a_repository_is_known_whoever_published_it(repository: str, model: str) -> None:
    assert load_model(known_model(repository)).name == model


def test_an_unknown_model_is_an_input_error() -> None:
    with pytest.raises(InputError, match="is not known"):
        known_model("somebody/Nothing-7B-Instruct")


def test_the_engine_is_the_one_of_its_time() -> None:
    deployment = deployment_of(MeasuredRun.model_validate(run(kv_blocks=5000, weight_precision="FP8")))
    engine = deployment.engine
    assert engine.async_scheduling
    assert engine.enable_prefix_caching
    assert engine.max_model_len == 4096
    assert engine.num_gpu_blocks_override == 5000
    assert deployment.weights == "fp8"


@pytest.mark.parametrize(("change", "said"), [({"weight_precision": "FP7"}, "FP7"), ({"data_parallel": 2}, "replica")])
def test_what_is_not_rebuilt_is_refused_with_the_reason(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        deployment_of(MeasuredRun.model_validate(run(**change)))
