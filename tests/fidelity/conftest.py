"""Hand-made measured runs, and the real ones where they lie beside the checkout."""

from pathlib import Path
from typing import Any

import pytest

Run = dict[str, Any]  # as its JSON file has it


def run(**changes: Any) -> Run:
    """A small valid run; `changes` replace top-level fields."""
    tree: Run = {
        "id": "a",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "hardware": "H100",
        "tensor_parallel": 1,
        "weight_precision": "FP16",
        "max_num_batched_tokens": 2048,
        "gpu_memory_utilization": 0.9,
        "cpu_offload": False,
        "max_num_seqs": 128,
        "workload": "general",
        "measured": {"whole": {"itl_mean_ms": 8.0, "ttft_mean_ms": 26.0, "ttft_p99_ms": 40.0, "e2e_mean_ms": 1900.0}},
        "workload_spec": {
            "system_prompts": 3,
            "users_per_prompt": 2,
            "system_prompt_len": 40,
            "question_len": 100,
            "output_len": 20,
            "stages": [[4.0, 10.0], [8.0, 5.0]],
        },
        "mean_output_tokens_implied": 18.5,
    }
    return {**tree, **changes}


@pytest.fixture(scope="session")
def gpu_runs(shared: Path) -> Path:
    """The file of 28 measured runs of vLLM."""
    path = shared / "fidelity" / "vllm_gpu_runs.json"
    if not path.is_file():
        pytest.skip("the measured runs are not beside this checkout")
    return path
