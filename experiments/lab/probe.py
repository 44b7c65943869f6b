"""Single steps of chosen size on the device there is, and what the fitted step-time model says of them."""

import tempfile
from pathlib import Path

import numpy as np

from simkit.engine.settings import EngineSettings
from simkit.testbed.bench import Bench, set_up
from simkit.testbed.calibration import calibrate, fitted
from simkit.testbed.inputs import Chunk, Decodes, StepInputs
from simkit.testbed.knotted_step import KnottedStep
from simkit.testbed.settings import TestbedSettings
from simkit.testbed.wall_clock import CLOCKS
from simkit.workloads.workload import Workload

DECODER = Path(__file__).parents[1] / "testbed/decoder_100m.json"
REPEATS = 7


def lab_bench(device: str, clock: str, model: str = "", longest: int = 2048) -> Bench:
    """The 99 M parameter decoder on one CPU thread, or on CUDA llama-3.1-8b whole."""
    name = model or ("llama-3.1-8b" if device == "cuda" else str(DECODER))
    engine = EngineSettings(
        max_num_batched_tokens=longest,
        max_num_seqs=32,
        max_model_len=longest,
        num_gpu_blocks_override=32 * longest // 16 + 1,
        async_scheduling=False,  # a probe's time holds the making of its inputs, so must the model's
        enable_prefix_caching=False,
    )
    threads = 1 if device == "cpu" else None
    return set_up(name, engine, TestbedSettings(device=device, threads=threads, dtype="bfloat16", clock=clock))


def fitted_model(bench: Bench, longest_prompt: int) -> KnottedStep:
    """A step-time model from bursts of other requests, so that it predicts the probes and does not repeat them."""
    lengths = np.array([8, longest_prompt], dtype=np.int32)
    answers = np.array([4, 64], dtype=np.int32)
    workload = Workload("lab", np.zeros(2, dtype=np.int64), lengths, answers)
    # a step as large as the largest probe would take most of the time for itself
    rules = bench.limits._replace(max_num_batched_tokens=min(512, bench.limits.max_num_batched_tokens))
    small = Bench(bench.executor, None, rules, bench.discipline, bench.seed, bench.clock)
    with tempfile.TemporaryDirectory() as folder:
        return fitted(calibrate(small, workload, Path(folder), bursts=6), small).model


def prefill_step(bench: Bench, tokens: int, past: int = 0) -> StepInputs:
    """One request's chunk of `tokens` after `past` that lie in the cache."""
    size = bench.executor.block_size
    blocks = 1 + np.arange(-(-(past + tokens) // size))
    position = np.arange(past, past + tokens)
    none = np.zeros(0, dtype=np.int64)
    return StepInputs(
        tokens=np.arange(tokens) % bench.executor.vocab,
        positions=position,
        slots=blocks[position // size] * size + position % size,
        decodes=Decodes(none, np.zeros((0, 0), dtype=np.int64), none),
        chunks=(Chunk(0, tokens, past, blocks),),
        sampled=np.array([tokens - 1]),
    )


def decode_step(bench: Bench, requests: int, context: int) -> StepInputs:
    """One token for each of `requests`, which all see `context` tokens, their own included."""
    size = bench.executor.block_size
    each = -(-context // size)
    blocks = 1 + np.arange(requests * each).reshape(requests, each)
    return StepInputs(
        tokens=np.arange(requests),
        positions=np.full(requests, context - 1),
        slots=blocks[:, -1] * size + (context - 1) % size,
        decodes=Decodes(np.arange(requests), blocks, np.full(requests, context)),
        chunks=(),
        sampled=np.arange(requests),
    )


def measured_s(bench: Bench, step: StepInputs, repeats: int = REPEATS) -> float:
    """Median seconds of a step, once run to warm up."""
    clock = CLOCKS[bench.clock]()
    bench.executor.run(step)
    times = []
    for _ in range(repeats):
        start = clock.now_ns()
        bench.executor.run(step)
        times.append((clock.now_ns() - start) / 1e9)
    return float(np.median(times))


def expected_s(model: KnottedStep, step: StepInputs) -> float:
    """The same by the step-time model."""
    pairs = sum(chunk.tokens * chunk.past + chunk.tokens * (chunk.tokens + 1) / 2 for chunk in step.chunks)
    decodes = (float(len(step.decodes.rows)), float(step.decodes.context.sum()))
    drafting = 0.0
    features = np.array([[float(len(step.tokens)), *decodes, float(len(step.chunks)), pairs, drafting]])
    return float(model.device_s(features)[0])
