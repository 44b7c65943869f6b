"""Predict AIConfigurator's own measured sample, H100 and H200, aggregated rows of models that are known here.

    python experiments/fidelity/silicon.py [silicon_sample.csv] [OUT.json] [--every N]

The rows were measured by closed-loop clients, 10 requests for each one in flight, the first burst counted. Two kinds:

- InferenceX: lengths drawn evenly from 80 to 100 % of the nominal ones (`--random-range-ratio 0.8`), and vLLM with its
  default of 8,192 tokens a step (the README of InferenceMAX, as it was called).
- AIConfigurator's own runs: all lengths equal (genai_perf_runner.py in its repository, src/aiconfigurator/eval), on
  engines configured by its rules for benchmarks (generator/rule_plugin/benchmark/{vllm,trtllm}.rule): a step takes
  `batch + ISL + 1500` tokens, one or two prompts. That spreads the prompts that a larger step would compute together.

SGLang is replayed by its own rules with its own default step of 8,192 tokens: prompts go first, and alone. TensorRT-LLM
is replayed by vLLM's rules. No constant is fitted here.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from simkit.calibrate.silicon_sample import SiliconRow, read_silicon_sample, without_repeats
from simkit.engine.deployment import Deployment, resolve
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.fidelity.closed_loop import ClosedLoop, LoopFigures, replay_loop
from simkit.fidelity.deployments import known_model
from simkit.models.engine_law import engine_law
from simkit.models.layout import Layout

DEVICES = ("h100-sxm", "h200")
ROUNDS = 10  # requests for each one in flight
INFERENCEX = ("workflow_run_id=", "wip=")  # what the sources of its rows say
SHORTEST = 0.8
MARGIN_TOKENS = 1500  # what AIConfigurator's rules for benchmarks add to a step
WEIGHTS = {"": None, "bf16": None, "fp8": "fp8", "fp8_block": "fp8"}


def deployment(row: SiliconRow) -> Deployment:
    """What ran; InputError where it cannot be said, or is not modelled."""
    pool = row.serving
    model = known_model(row.model)
    if row.gemm_precision not in WEIGHTS and not model.startswith("openai/gpt-oss"):
        raise InputError(f"weights in {row.gemm_precision} are not modelled for {row.model}")
    if (pool.attention_data or 1) > 1 or (pool.pipeline or 1) > 1:
        raise InputError("data-parallel attention or a pipeline is not modelled here")
    tensor = pool.tensor or 1
    spread = (pool.expert_parallel or 1) > 1
    if spread and pool.expert_parallel != tensor:
        raise InputError(f"experts over {pool.expert_parallel} of {tensor} GPUs are not modelled")
    if row.concurrency is None:
        raise InputError("the source does not say how many requests were in flight")
    longest = row.input_tokens + row.output_tokens + 64
    return Deployment(
        model=model,
        device=row.device or "",
        layout=Layout(tensor=tensor, expert=tensor if spread else 1),
        weights=WEIGHTS.get(row.gemm_precision),
        sampling="plain",  # benchmark clients ask for greedy sampling
        engine=EngineSettings(
            discipline="sglang" if row.backend == "sglang" else "vllm-v1",
            max_model_len=longest,
            max_num_batched_tokens=step_tokens(row),
            max_num_seqs=max(1024, row.concurrency),
            gpu_memory_utilization=0.9,
        ),
    )


def of_inferencex(row: SiliconRow) -> bool:
    """Whether InferenceX measured it; else AIConfigurator's authors did."""
    return any(mark in row.source for mark in INFERENCEX)


def step_tokens(row: SiliconRow) -> int | None:
    """The most tokens of a step; None for the engine's default."""
    if of_inferencex(row) or row.backend == "sglang":
        return None
    return (row.serving.batch or row.concurrency or 0) + row.input_tokens + MARGIN_TOKENS


def predict(row: SiliconRow) -> LoopFigures:
    """Mean TTFT and TPOT; InputError says why there are none."""
    spec = resolve(deployment(row))
    assert row.concurrency is not None, "deployment() has asked"
    shortest = SHORTEST if of_inferencex(row) else 1.0
    loop = ClosedLoop(row.concurrency, ROUNDS * row.concurrency, row.input_tokens, row.output_tokens, shortest)
    front_end_s = engine_law().front_end_ns(spec.device.name, row.input_tokens) / 1e9
    return replay_loop(spec, loop, front_end_s)


Record = dict[str, object]


def summary(records: Sequence[Record], of: Callable[[Record], bool] = lambda record: True) -> dict[str, object]:
    """Errors of the records chosen, %."""
    chosen = [record for record in records if of(record)]
    tree: dict[str, object] = {"n": len(chosen)}
    for metric in ("tpot", "ttft"):
        errors = np.array([record[f"{metric}_error_pct"] for record in chosen], dtype=np.float64)
        if len(errors):
            tree[metric] = {
                "median_abs_pct": round(float(np.median(np.abs(errors))), 1),
                "mape_pct": round(float(np.mean(np.abs(errors))), 1),
                "median_signed_pct": round(float(np.median(errors)), 1),
            }
    return tree


def main() -> None:
    """Predict every N-th row, and print errors by engine and device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sample", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parent / "results" / "silicon.json")
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    rows = [row for row in without_repeats(read_silicon_sample(arguments.sample)) if row.mode == "agg"]
    rows = [row for row in rows if row.device in DEVICES][:: arguments.every]
    records: list[Record] = []
    refused: dict[str, int] = {}
    start = time.perf_counter()
    for row in rows:
        try:
            found = predict(row)
        except InputError as error:
            reason = str(error).split(";")[0][:90]
            refused[reason] = refused.get(reason, 0) + 1
            continue
        records.append(
            {
                "id": row.id,
                "backend": row.backend,
                "client": "InferenceX" if of_inferencex(row) else "AIConfigurator",
                "device": row.device,
                "model": row.model,
                "gemm": row.gemm_precision,
                "tensor": row.tensor,
                "concurrency": row.concurrency,
                "input_tokens": row.input_tokens,
                "output_tokens": row.output_tokens,
                "tpot_ms": round(row.tpot_s * 1e3, 3),
                "ttft_ms": round(row.ttft_s * 1e3, 2),
                "tpot_error_pct": round((found.tpot_s / row.tpot_s - 1) * 100, 1),
                "ttft_error_pct": round((found.ttft_s / row.ttft_s - 1) * 100, 1),
            }
        )
    groups = {"all": summary(records)}
    for key in ("backend", "client", "device", "model"):
        for value in sorted({str(record[key]) for record in records}):
            groups[f"{key} {value}"] = summary(records, lambda record, k=key, v=value: record[k] == v)
    for backend, client in sorted({(str(record["backend"]), str(record["client"])) for record in records}):
        groups[f"{backend} by {client}"] = summary(
            records, lambda record, b=backend, c=client: record["backend"] == b and record["client"] == c
        )
    for device in DEVICES:
        groups[f"vllm on {device}"] = summary(
            records, lambda record, d=device: record["backend"] == "vllm" and record["device"] == d
        )
    share = len(records) / len(rows)
    tree = {"rows": len(rows), "predicted_share": round(share, 3), "refused": refused, "errors": groups}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(tree, indent=1) + "\n")
    print(json.dumps(tree, indent=1))
    print(f"{time.perf_counter() - start:.0f} s")
    arguments.out.with_suffix(".rows.json").write_text(json.dumps(records, indent=0) + "\n")


if __name__ == "__main__":
    main()
