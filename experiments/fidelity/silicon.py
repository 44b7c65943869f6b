"""Predict AIConfigurator's own measured sample, H100 and H200, aggregated rows of models that are known here.

    python experiments/fidelity/silicon.py [silicon_sample.csv] [OUT.json] [--every N]

The rows were measured by closed-loop clients, 10 requests for each one in flight, the first burst counted. Two kinds:

- InferenceX (SemiAnalysisAI/InferenceX, once InferenceMAX): lengths drawn evenly from 80 to 100 % of the nominal ones
  (`--random-range-ratio 0.8`), after two requests for each in flight that do not count. Its scripts, one a model and
  device under benchmarks/, say how many tokens a step takes, and that gpt-oss on vLLM has its experts multiplied by
  Marlin (`VLLM_MXFP4_USE_MARLIN=1`).
- AIConfigurator's own runs: all lengths equal (genai_perf_runner.py in its repository, src/aiconfigurator/eval), on
  engines configured by its rules for benchmarks (generator/rule_plugin/benchmark/{vllm,trtllm}.rule): a step takes
  `batch + ISL + 1500` tokens, one or two prompts. That spreads the prompts that a larger step would compute together.

SGLang is replayed by its own rules: prompts go first, and alone; where nothing else is said, with its own default step
of 8,192 tokens. TensorRT-LLM is replayed by vLLM's rules. No constant is fitted here.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from simkit.calibrate.silicon_sample import SiliconRow, read_silicon_sample, without_repeats
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.fidelity.closed_loop import ClosedLoop, LoopFigures, replay_loop
from simkit.fidelity.deployments import known_model
from simkit.models.calibrated import calibrated_tables
from simkit.models.kernel_laws import laws_of
from simkit.models.layout import Layout
from simkit.models.step_law import TableSizes

DEVICES = ("h100-sxm", "h200")
ROUNDS = 10  # requests for each one in flight
INFERENCEX = ("workflow_run_id=", "wip=")  # what the sources of its rows say
SHORTEST = 0.8
# most tokens of a step in InferenceX's scripts, where they are not the engine's default of 8,192: `--max_num_tokens` of
# gptoss_fp4_h200_trt, 70b_fp8_h200_trt_slurm and dsr1_fp8_h200_trt, `--chunked-prefill-size` of dsr1_fp8_h200
INFERENCEX_STEPS = {
    ("trtllm", "gpt-oss"): 20_000,
    ("trtllm", "Llama-3.1-70B"): 16_384,
    ("trtllm", "DeepSeek"): 8_192,
    ("sglang", "DeepSeek"): 32_768,
}
# whose KV caches its scripts store in FP8: `kv-cache-dtype: fp8`, or `kv_cache_config: dtype: fp8`
INFERENCEX_FP8_CACHES = (("vllm", "Llama-3.1-70B"), ("trtllm", "Llama-3.1-70B"), ("trtllm", "DeepSeek"))
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
        kv="fp8" if fp8_cache(row) else "bf16",
        sampling="plain",  # benchmark clients ask for greedy sampling
        engine=EngineSettings(
            discipline="sglang" if row.backend == "sglang" else "vllm-v1",
            max_model_len=longest,
            max_num_batched_tokens=step_tokens(row),
            max_num_seqs=most_requests(row),
            gpu_memory_utilization=0.9,
        ),
    )


def of_inferencex(row: SiliconRow) -> bool:
    """Whether InferenceX measured it; else AIConfigurator's authors did."""
    return any(mark in row.source for mark in INFERENCEX)


def most_requests(row: SiliconRow) -> int:
    """The most requests of a step: as InferenceX's scripts for vLLM say, else no fewer than an engine's default."""
    assert row.concurrency is not None, "deployment() has asked"
    told = of_inferencex(row) and row.backend == "vllm"
    return row.concurrency if told else max(1024, row.concurrency)


def step_tokens(row: SiliconRow) -> int | None:
    """The most tokens of a step; None for the engine's default."""
    if of_inferencex(row):
        for (backend, model), tokens in INFERENCEX_STEPS.items():
            if row.backend == backend and model in row.model:
                return max(tokens, row.input_tokens + (row.concurrency or 0) + 64)
        return None
    if row.backend == "sglang":
        return None
    return (row.serving.batch or row.concurrency or 0) + row.input_tokens + MARGIN_TOKENS


def fp8_cache(row: SiliconRow) -> bool:
    """Whether the server was told to keep its KV cache in 8 bits."""
    told = (backend == row.backend and name in row.model for backend, name in INFERENCEX_FP8_CACHES)
    return of_inferencex(row) and any(told)


def told_marlin(row: SiliconRow) -> bool:
    """Whether the server was told to multiply MXFP4 experts by Marlin, not by vLLM's choice for Hopper, Triton.

    InferenceX's scripts for gpt-oss have `export VLLM_MXFP4_USE_MARLIN=1` (gptoss_fp4_h100.sh and gptoss_fp4_h200.sh
    in its repository, benchmarks/single_node).
    """
    return of_inferencex(row) and row.backend == "vllm" and "gpt-oss" in row.model


def with_marlin(spec: ReplicaSpec) -> ReplicaSpec:
    """The deployment with its experts of 4 bits timed by the tables of Marlin."""
    found = laws_of(spec.device)
    assert found is not None, "both devices have laws"
    laws = found[0].model_copy(update={"grouped_gemm_4bit": found[0].grouped_gemm_marlin})
    limits = spec.limits
    sizes = TableSizes(limits.max_num_batched_tokens, limits.max_running, limits.max_model_len, spec.context_tokens)
    layout = spec.deployment.layout
    tables = calibrated_tables(spec.architecture, spec.device, layout, sizes=sizes, sampling="plain", laws=laws)
    return replace(spec, tables=tables)


def predict(row: SiliconRow) -> LoopFigures:
    """Mean TTFT and TPOT; InputError says why there are none."""
    spec = resolve(deployment(row))
    if told_marlin(row):
        spec = with_marlin(spec)
    assert row.concurrency is not None, "deployment() has asked"
    shortest = SHORTEST if of_inferencex(row) else 1.0
    loop = ClosedLoop(row.concurrency, ROUNDS * row.concurrency, row.input_tokens, row.output_tokens, shortest)
    return replay_loop(spec, loop)


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
