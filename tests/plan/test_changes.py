"""Single changes of a chosen deployment."""

import pytest

from simkit.engine.deployment import Deployment
from simkit.metrics.slo import promise
from simkit.models.layout import Layout
from simkit.plan.answer import Question
from simkit.plan.changes import best_changes
from simkit.plan.space import SearchSpace, kinds
from simkit.workloads.presets import preset


@pytest.mark.parametrize(
    ("deployment", "has"),
    [
        (Deployment(model="llama-3.1-8b", device="l40s"), {"max_num_batched_tokens 2048"}),
        (Deployment(model="llama-3.1-8b", device="h100", weights="fp8", kv="FP8"), {"KV cache in fp8"}),
        (
            Deployment(model="deepseek-v3", device="b200", layout=Layout(tensor=8)),
            {"weights in fp8", "max_num_batched_tokens 16384"},
        ),
    ],
)
def test_no_change_is_offered_that_the_plan_has_already(deployment: Deployment, has: set[str]) -> None:
    """vLLM takes 2,048 tokens a step on cards below 70 GiB, 16,384 from 160 GiB on; DeepSeek publishes fp8 weights."""
    traffic = preset("azure-conv-2023", requests=200, seed=0, arrivals="poisson")
    question = Question(traffic, 2.0, promise({"ttft_p99_s": 2.0}))
    kind = kinds(SearchSpace(replicas=4), deployment)[0]
    offered = {change.words for change in best_changes(question, kind, 1, 4.0)}
    assert "gpu_memory_utilization 0.95" in offered
    assert not offered & has
