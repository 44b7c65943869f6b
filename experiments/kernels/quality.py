"""What a precision costs: the error of each kernel against float64, as a table.

    python experiments/kernels/quality.py            on a CUDA device where there is one, else in Triton's interpreter

Two errors, each over fresh random inputs, as root mean square and largest, both relative to the root mean square of the
float64 result:

- of the kernel: against float64 on the same stored numbers. What the arithmetic loses.
- in all: against float64 on the numbers before they were stored. What a deployer of that precision gets.
"""

# ruff: noqa: E402  the interpreter is chosen before kernels are defined
import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before any import of one
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from simkit.kernels.attention_features import AttentionFeatures
from simkit.kernels.interpreter_numbers import exact_numbers
from simkit.kernels.mla_decode import LatentCache, mla_decode, mla_decode_reference
from simkit.kernels.paged_cache import FP8, PagedCache
from simkit.kernels.paged_decode import paged_decode, paged_decode_reference
from simkit.kernels.paged_prefill import paged_prefill, paged_prefill_reference
from simkit.kernels.rope_cache import rope_and_cache, rope_reference
from simkit.kernels.rope_frequencies import rope_table

CONTEXTS = [1, 17, 64, 200, 333, 512]
CHUNKS = [1, 17, 10, 50, 33, 40]  # the last tokens of the contexts
HEADS, KV_HEADS, HEAD_DIM, PAGE = 4, 2, 64, 16
SEEDS = range(3)


class Precision(NamedTuple):
    """What queries and outputs are stored as, and the cache."""

    name: str
    compute: torch.dtype
    cache: torch.dtype


PRECISIONS = [
    Precision("fp32", torch.float32, torch.float32),
    Precision("fp16", torch.float16, torch.float16),
    Precision("bf16", torch.bfloat16, torch.bfloat16),
    Precision("fp16, fp8 KV", torch.float16, FP8),
    Precision("bf16, fp8 KV", torch.bfloat16, FP8),
]


class Outcome(NamedTuple):
    """A kernel's result, float64's on the same stored numbers, and float64's on the numbers before."""

    found: torch.Tensor
    stored: torch.Tensor
    exact: torch.Tensor


class Row(NamedTuple):
    """Errors relative to the root mean square of the exact result."""

    kernel: str
    precision: str
    kernel_rms: float
    kernel_most: float
    all_rms: float
    all_most: float


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal numbers in f32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def stored(cache: PagedCache, precision: Precision) -> PagedCache:
    """An f32 cache as this precision holds it; fp8 with the scale that puts the largest at 448."""
    if precision.cache != FP8:
        return cache._replace(k=cache.k.to(precision.cache), v=cache.v.to(precision.cache))
    scales = [(pool.abs().max() / 448.0).reshape(1) for pool in (cache.k, cache.v)]
    k, v = ((pool / scale).clamp(-448, 448).to(FP8) for pool, scale in zip((cache.k, cache.v), scales, strict=True))
    return cache._replace(k=k, v=v, k_scale=scales[0], v_scale=scales[1])


def exact_cache(seed: int, kv_heads: int = KV_HEADS, head_dim: int = HEAD_DIM) -> PagedCache:
    """Random keys and values in f32, pages one after the other."""
    pages = [-(-context // PAGE) for context in CONTEXTS]
    table = torch.zeros(len(CONTEXTS), max(pages), dtype=torch.int32)
    for request, first in enumerate(accumulate([0, *pages[:-1]])):
        table[request, : pages[request]] = torch.arange(first, first + pages[request])
    shape = (sum(pages), PAGE, kv_heads, head_dim)
    contexts = torch.tensor(CONTEXTS, dtype=torch.int32, device=DEVICE)
    return PagedCache(normal(seed, *shape), normal(seed + 1, *shape), table.to(DEVICE), contexts)


def decode(precision: Precision, seed: int) -> Outcome:
    cache, q = exact_cache(seed), normal(seed + 2, len(CONTEXTS), HEADS, HEAD_DIM)
    narrow, narrow_q = stored(cache, precision), q.to(precision.compute)
    found = paged_decode(narrow_q, narrow, max(CONTEXTS), split_tokens=128)
    return Outcome(found, paged_decode_reference(narrow_q, narrow), paged_decode_reference(q, cache))


def prefill(precision: Precision, seed: int, features: AttentionFeatures | None = None) -> Outcome:
    cache, q = exact_cache(seed), normal(seed + 2, sum(CHUNKS), HEADS, HEAD_DIM)
    starts = torch.tensor([0, *accumulate(CHUNKS)], dtype=torch.int32, device=DEVICE)
    narrow, narrow_q = stored(cache, precision), q.to(precision.compute)
    some = AttentionFeatures() if features is None else features
    found = paged_prefill(narrow_q, starts, narrow, max(CHUNKS), features=some)
    same = paged_prefill_reference(narrow_q, starts, narrow, features=some)
    return Outcome(found, same, paged_prefill_reference(q, starts, cache, features=some))


def prefill_with_features(precision: Precision, seed: int) -> Outcome:
    slopes = torch.tensor([2.0 ** (-2 * (head + 1)) for head in range(HEADS)], device=DEVICE)  # ALiBi's for 4 heads
    return prefill(precision, seed, AttentionFeatures(128, 30.0, slopes, normal(seed + 3, HEADS)))


def latent_decode(precision: Precision, seed: int) -> Outcome:
    pool, q = exact_cache(seed, 1, 576), normal(seed + 2, len(CONTEXTS), HEADS, 576) / 3**0.5
    narrow, narrow_q = stored(pool._replace(v=pool.k), precision), q.to(precision.compute)
    caches = [LatentCache(p.k[:, :, 0], p.page_table, p.context_tokens, p.k_scale) for p in (narrow, pool)]
    found = mla_decode(narrow_q, caches[0], max(CONTEXTS), 192**-0.5, split_tokens=256)
    same = mla_decode_reference(narrow_q, caches[0], 192**-0.5)
    return Outcome(found, same, mla_decode_reference(q, caches[1], 192**-0.5))


def rotation(precision: Precision, seed: int) -> Outcome:
    """Rotated keys as the cache holds them."""
    cache = stored(exact_cache(seed), precision)
    k, positions = normal(seed + 2, 64, KV_HEADS, HEAD_DIM), torch.arange(64, device=DEVICE) * 501
    table = rope_table(int(positions.max()) + 1, HEAD_DIM).to(DEVICE)
    if precision.cache == FP8:
        cache = cache._replace(k_scale=(k.abs().max() * 2**0.5 / 448.0).reshape(1))  # a pair may turn into one axis
    narrow = k.to(precision.compute)
    slots = torch.arange(64, device=DEVICE)
    rope_and_cache(narrow, narrow, narrow, positions, slots, cache, table)
    found = cache.k.flatten(0, 1)[slots].double() * (1.0 if cache.k_scale is None else cache.k_scale.double())
    return Outcome(found, rope_reference(narrow, positions, table), rope_reference(k, positions, table))


KERNELS: dict[str, Callable[[Precision, int], Outcome]] = {
    "decode": decode,
    "prefill": prefill,
    "prefill, window, soft-cap, ALiBi, sinks": prefill_with_features,
    "MLA decode": latent_decode,
    "RoPE and cache write, keys": rotation,
}


def relative(found: torch.Tensor, wanted: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """Root mean square and largest error, relative to the root mean square of the exact result."""
    size = exact.double().square().mean().sqrt()
    error = found.double() - wanted.double()
    return float(error.square().mean().sqrt() / size), float(error.abs().max() / size)


def rows() -> Iterator[Row]:
    """A row for each kernel and precision, the worst of the seeds."""
    for kernel, run in KERNELS.items():
        for precision in PRECISIONS:
            outcomes = [run(precision, 100 * seed) for seed in SEEDS]
            own = [relative(o.found, o.stored, o.exact) for o in outcomes]
            whole = [relative(o.found, o.exact, o.exact) for o in outcomes]
            worst = [max(column) for errors in (own, whole) for column in zip(*errors, strict=True)]
            yield Row(kernel, precision.name, *worst)


def table(found: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| kernel | precision | kernel, rms | kernel, largest | in all, rms | in all, largest |",
        "|---|---|" + "---|" * 4,
    ]
    for row in found:
        figures = " | ".join(f"{figure:.1e}" for figure in row[2:])
        lines.append(f"| {row.kernel} | {row.precision} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else "Triton's interpreter"
    sys.stdout.write(f"On {where}:\n\n")
    with exact_numbers():
        found = list(rows())
    sys.stdout.write(table(found) + "\n")
    if find_spec("quality_other"):  # the other kernels' table stands beside this file
        import quality_other

        with exact_numbers():
            quality_other.main()


if __name__ == "__main__":
    main()
