"""By how much step tables that know a decode batch by its size and sum alone are too fast on real mixes of lengths.

    python experiments/calibrate/ragged.py            # prints the table of docs/calibrate_errors.md, some ten seconds

Steps of a preset are replayed with the tables of an H100 that serves Llama 3.1 8B. Each step's decode attention is
timed as an even batch, as the engine does, and by the makespan of its programs (`calibrate/makespan.py`):

- split: contexts are cut in proportion to their length until the chip is full, as kernels do that decide for each
  request (FlashAttention 3 with a scheduler's metadata, FlashInfer, SGLang's and our own Triton kernels);
- whole: a context is one program where whole contexts fill 80 % of the chip (FlashAttention 2);
- bounded: `whole` as tables could tell it if the engine told them the longest context of a batch too: a batch takes no
  less than the longest request's program alone.

No public table has a ragged batch, so these are errors against a model of such kernels, not against measurements.
"""

import argparse
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.makespan import EVEN, TILE_TOKENS, skew
from simkit.calibrate.split_kv import FULL
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.emitted_steps import Share, emitted_steps
from simkit.models.steptables import StepTables, interpolate
from simkit.workloads.presets import preset
from simkit.workloads.transform import fit_context

I64 = NDArray[np.int64]

KV_HEADS, PROCESSORS = 8, 132
SPLIT = EVEN
WHOLE = EVEN._replace(split_tokens=0)
# (preset, requests/s): about 0.5 and 0.9 of what the deployment bears
MIXES = (
    ("azure-conv-2023", 10.0),
    ("azure-conv-2023", 20.0),
    ("mooncake-conversation", 1.0),
    ("mooncake-conversation", 1.8),
)
STEPS, SAMPLED, WARM = 6_000, 400, 1_000


class Mix(NamedTuple):
    """Errors of even batches on one mix, as shares of what the kernel takes; negative is too fast."""

    name: str
    rate: float
    batch: float  # median requests of a decode batch
    longest: float  # median of longest over mean
    attention: dict[str, tuple[float, float]]  # by kernel: mean error of attention, and the worst tenth's
    step: dict[str, float]  # by kernel: error of the sum of steps' times


def batch_of(step: tuple[Share, ...]) -> I64:
    """The contexts of a step's decodes."""
    return np.array([share.before + 1 for share in step if share.new == 1], dtype=np.int64)


def rest_ns(step: tuple[Share, ...], tables: StepTables) -> float:
    """A step without the attention of its decodes."""
    total = float(tables.linear_ns[sum(share.new for share in step)])
    total += float(tables.sample_ns[sum(share.samples for share in step)])
    return total + sum(interpolate(tables.prefill_ns, share.new, share.before) for share in step if share.new > 1)


def fills(contexts: I64) -> bool:
    """Whether whole contexts keep the chip busy, so that FlashAttention 2 does not cut them."""
    return len(contexts) * KV_HEADS >= FULL * PROCESSORS


def bounded(contexts: I64) -> float:
    """The factor that the longest context alone gives: its program, run alone, over the end of an even batch."""
    if not fills(contexts):
        return 1.0
    busy = len(contexts) * KV_HEADS / (PROCESSORS * WHOLE.slots)
    even = np.ceil(contexts.mean() / TILE_TOKENS) * max(busy, 1.0 / WHOLE.alone)
    return max(1.0, float(np.ceil(contexts.max() / TILE_TOKENS) / WHOLE.alone / even))


def mix(name: str, rate: float, spec: ReplicaSpec, seed: int) -> Mix:
    """One preset at one rate, a sample of its steps."""
    longest = spec.limits.max_model_len
    workload = fit_context(preset(name, requests=4_000, rate_per_s=rate, seed=seed), longest, "clip")
    found = list(emitted_steps(workload, spec.limits, spec.tables, spec.num_blocks, STEPS))[WARM:]
    found = [step for step in found if len(batch_of(step)) > 1]
    rng = np.random.default_rng(seed)
    steps = [found[i] for i in rng.choice(len(found), min(SAMPLED, len(found)), replace=False)]
    batches = [batch_of(step) for step in steps]
    even = np.array([interpolate(spec.tables.decode_ns, len(batch), int(batch.sum())) for batch in batches])
    rest = np.array([rest_ns(step, spec.tables) for step in steps])
    factors = {
        "split": np.array([skew(batch, KV_HEADS, PROCESSORS, SPLIT) for batch in batches]),
        "whole": np.array([skew(batch, KV_HEADS, PROCESSORS, WHOLE if fills(batch) else SPLIT) for batch in batches]),
    }
    tail = np.array([bounded(batch) for batch in batches])
    off = {kernel: 1.0 / factor - 1.0 for kernel, factor in factors.items()} | {
        "bounded": tail / factors["whole"] - 1.0
    }
    whole = {
        kernel: float((rest + even).sum() / (rest + even * factor).sum() - 1.0) for kernel, factor in factors.items()
    }
    whole["bounded"] = float((rest + even * tail).sum() / (rest + even * factors["whole"]).sum() - 1.0)
    return Mix(
        name,
        rate,
        float(np.median([len(batch) for batch in batches])),
        float(np.median([batch.max() / batch.mean() for batch in batches])),
        {kernel: (float(error.mean()), float(np.percentile(error, 10))) for kernel, error in off.items()},
        whole,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    print(
        "| preset, requests/s | batch | longest / mean | attention: split | whole | bounded | steps: split | whole",
        end="",
    )
    print(" | bounded |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, rate in MIXES:
        found = mix(name, rate, spec, given.seed)
        attention = [f"{100 * mean:+.1f} % ({100 * worst:+.1f})" for mean, worst in found.attention.values()]
        steps = [f"{100 * error:+.2f} %" for error in found.step.values()]
        sizes = f"{found.batch:.0f} | {found.longest:.1f}"
        print(f"| {name}, {rate:g} | {sizes} | {' | '.join([*attention, *steps])} |", flush=True)


if __name__ == "__main__":
    main()
