"""By how much step tables are too fast on real mixes of context lengths.

    python experiments/calibrate/ragged.py            # prints the table of docs/calibrate_errors.md, some ten seconds

Steps of a preset are replayed with the tables of a device that serves Llama 3.1 8B. Each step's decode attention is
timed as an even batch of the same size and sum, as the engine's tables do, and by the makespan of its programs
(`calibrate/makespan.py`):

- h100: contexts are cut in proportion to their length until the chip is full, as kernels do that decide for each
  request (FlashAttention 3 with a scheduler's metadata, FlashInfer, SGLang's and our own Triton kernels);
- a100, l40s: all contexts of a batch are cut alike, or left whole where they fill the chip (FlashAttention 2). Here the
  tables also go by the longest context (`models/flash_attention.py`).

No public table has a ragged batch, so these are errors against a model of such kernels, not against measurements.
"""

import argparse
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.makespan import EVEN, end_tiles, skew
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.emitted_steps import Share, emitted_steps
from simkit.models.captures import default_capture_sizes, padded_tokens
from simkit.models.flash_attention import PROGRAMS_EACH, TILE_BYTES, TILE_NS, split_count, tile_tokens
from simkit.models.steptables import StepTables, interpolate, uneven_ns
from simkit.workloads.presets import preset
from simkit.workloads.transform import fit_context

I64 = NDArray[np.int64]

KV_HEADS, HEAD_DIM = 8, 128
# (device, preset, requests/s): about 0.5 and 0.9 of what the deployment bears
MIXES = (
    ("h100", "azure-conv-2023", 10.0),
    ("h100", "azure-conv-2023", 20.0),
    ("h100", "mooncake-conversation", 1.0),
    ("h100", "mooncake-conversation", 1.8),
    ("a100", "azure-conv-2023", 4.0),
    ("a100", "azure-conv-2023", 8.0),
    ("a100", "mooncake-conversation", 0.4),
    ("a100", "mooncake-conversation", 0.7),
    ("l40s", "azure-conv-2023", 3.0),
    ("l40s", "mooncake-conversation", 0.25),
)
REACHED = 0.9  # of the bandwidth: Vidur's A100 at 216 and 432 programs
STEPS, SAMPLED, WARM = 6_000, 400, 1_000


class Mix(NamedTuple):
    """Errors on one mix, as shares of what the kernel takes; negative is too fast."""

    batch: float  # median requests of a decode batch
    longest: float  # median of longest over mean
    attention: tuple[float, float]  # of even batches: mean, and of the worst tenth
    told: tuple[float, float]  # the same of what the tables say
    step: float  # of the sum of steps' times, attention as of even batches
    told_step: float


def batch_of(step: tuple[Share, ...]) -> I64:
    """The contexts of a step's decodes."""
    return np.array([share.before + 1 for share in step if share.new == 1], dtype=np.int64)


def rest_ns(step: tuple[Share, ...], tables: StepTables) -> float:
    """A step without the attention of its decodes."""
    total = float(tables.linear_ns[sum(share.new for share in step)])
    total += float(tables.sample_ns[sum(share.samples for share in step)])
    return total + sum(interpolate(tables.prefill_ns, share.new, share.before) for share in step if share.new > 1)


def factor_of(contexts: I64, spec: ReplicaSpec) -> float:
    """How much longer than an even batch one of these lengths takes, by its makespan."""
    processors = spec.device.multiprocessors.value
    if len(spec.tables.alone_ns) == 0:
        return skew(contexts, KV_HEADS, processors, EVEN)
    slots = PROGRAMS_EACH * processors
    # a program alone is as fast as latency lets it be, one of many has its part of the bandwidth
    alone = slots * TILE_BYTES / TILE_NS * 1e9 / (REACHED * spec.device.bandwidth_bytes_per_s)
    how = EVEN._replace(split_tokens=0, alone=alone)
    even = np.full(len(contexts), contexts.mean())
    ends = [end_tiles(parts_of(batch, spec), KV_HEADS, slots, how) for batch in (contexts.astype(float), even)]
    return max(1.0, ends[0] / ends[1])


def parts_of(contexts: NDArray[np.float64], spec: ReplicaSpec) -> NDArray[np.float64]:
    """The tokens of every part of a batch's contexts, cut in as many parts as the graph of its size has."""
    tile, slots = tile_tokens(HEAD_DIM), PROGRAMS_EACH * spec.device.multiprocessors.value
    captures = default_capture_sizes(spec.limits.max_running, spec.limits.max_num_batched_tokens)
    padded = padded_tokens(np.array([len(contexts)]), captures).astype(float)
    wide = np.ceil(np.array([spec.limits.max_model_len]) / tile)
    parts = split_count(padded * KV_HEADS, wide, slots)[0]
    part = np.ceil(np.ceil(contexts / tile) / parts) * tile
    pairs = zip(contexts, part, strict=True)
    return np.concatenate([np.minimum(size, tokens - np.arange(0.0, tokens, size)) for tokens, size in pairs])


def mix(name: str, rate: float, spec: ReplicaSpec, seed: int) -> Mix:
    """One preset at one rate, a sample of its steps."""
    tables = spec.tables
    workload = fit_context(preset(name, requests=4_000, rate_per_s=rate, seed=seed), spec.limits.max_model_len, "clip")
    found = list(emitted_steps(workload, spec.limits, tables, spec.num_blocks, STEPS))[WARM:]
    found = [step for step in found if len(batch_of(step)) > 1]
    rng = np.random.default_rng(seed)
    steps = [found[i] for i in rng.choice(len(found), min(SAMPLED, len(found)), replace=False)]
    batches = [batch_of(step) for step in steps]
    even = np.array([interpolate(tables.decode_ns, len(batch), int(batch.sum())) for batch in batches])
    beside = [
        uneven_ns(tables, len(batch), int(batch.sum()), int(batch.max()), float(ns))
        for batch, ns in zip(batches, even, strict=True)
    ]
    factor = np.array([factor_of(batch, spec) for batch in batches])
    said = even + np.array(beside)
    rest = np.array([rest_ns(step, tables) for step in steps])
    takes = even * factor

    def off(times: NDArray[np.float64]) -> tuple[float, float]:
        error = times / takes - 1.0
        return float(error.mean()), float(np.percentile(error, 10))

    return Mix(
        float(np.median([len(batch) for batch in batches])),
        float(np.median([batch.max() / batch.mean() for batch in batches])),
        off(even),
        off(said),
        float((rest + even).sum() / (rest + takes).sum() - 1.0),
        float((rest + said).sum() / (rest + takes).sum() - 1.0),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(
        "| device, preset, requests/s | batch | longest / mean | attention, even | the tables | steps, even | tables |"
    )
    print("|---|---|---|---|---|---|---|")
    for device, name, rate in MIXES:
        found = mix(name, rate, resolve(Deployment(model="llama-3.1-8b", device=device)), given.seed)
        attention = [f"{100 * mean:+.1f} % ({100 * worst:+.1f})" for mean, worst in (found.attention, found.told)]
        steps = [f"{100 * error:+.2f} %" for error in (found.step, found.told_step)]
        sizes = f"{found.batch:.0f} | {found.longest:.1f}"
        print(f"| {device}, {name}, {rate:g} | {sizes} | {' | '.join([*attention, *steps])} |", flush=True)


if __name__ == "__main__":
    main()
