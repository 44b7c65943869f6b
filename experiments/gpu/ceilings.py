"""What this machine reaches at best: reading, copying, multiplying bf16; of several ways the best counts.

A way that fails is told and left out; where all of a kind fail its ceiling is NaN, and fractions of it are unknown.
"""

import math
from collections.abc import Callable, Iterator

import torch
import triton.language as tl
from kernel_report import Ceilings
from point_timing import say, told
from stages import Row, Stages

from simkit.kernels.cold_timing import Call, GraphTimer
from simkit.kernels.jit import jit

STREAM_BYTES = 4 << 30
BLOCK = 16384
SAMPLES = 9
WAY_S = 60.0  # of one way at most


@jit
def read_kernel(source: tl.pointer_type, out: tl.pointer_type, BLOCK: tl.constexpr) -> None:
    """The sum of one block, so that every byte must be read."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0), tl.sum(tl.load(source + lane), 0))


def best_us(call: Call) -> float:
    """The median of samples, microseconds."""
    timer = GraphTimer([call], least_ms=20.0)
    return sorted(timer.sample_us() for _ in range(SAMPLES))[SAMPLES // 2]


def measure(stages: Stages | None = None) -> Ceilings:
    """All of them, in some ten seconds; each way may take WAY_S where `stages` are watched."""
    found = (stages or Stages()).run("ceilings", WAY_S, all_rates)
    if found.cut:
        say(f"ceilings: {found.cut}")
    ways = {str(way): float(rate) for way, rate in found.rows}
    best = {
        kind: max((rate for way, rate in ways.items() if way.startswith(kind)), default=math.nan)
        for kind in ("read", "copy", "gemm")
    }
    return Ceilings(best["read"], best["copy"], best["gemm"], ways)


def all_rates() -> Iterator[Row]:
    """Each way with its rate, those that fail left out."""
    for kind in (stream_rates, product_rates):
        try:
            for way, rate in kind():
                yield from ([name, value] for name, value in reached(way, rate).items())
        except Exception as error:  # no memory for what it works on: the kernels' own times are wanted all the same
            say(f"{kind.__name__}: {told(error)}")
        torch.cuda.empty_cache()


def reached(way: str, rate: Callable[[], float]) -> dict[str, float]:
    """The rate of a way, nothing where it fails."""
    try:
        return {way: rate()}
    except Exception as error:
        say(f"{way}: {told(error)}")
        return {}


def stream_rates() -> Iterator[tuple[str, Callable[[], float]]]:
    """Bytes a second, each way to be asked."""
    source = torch.ones(STREAM_BYTES // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    sums = torch.empty(len(source) // BLOCK, dtype=torch.float32, device="cuda")

    def read(warps: int) -> Call:
        return lambda: read_kernel[(len(sums),)](source, sums, BLOCK=BLOCK, num_warps=warps)

    once = STREAM_BYTES * 1e6
    # torch's own first: they need no compiler
    yield "read, torch sum", lambda: once / best_us(lambda: source.sum())
    yield "copy, torch copy_", lambda: 2 * once / best_us(lambda: target.copy_(source))
    yield "copy, torch add", lambda: 2 * once / best_us(lambda: torch.add(source, 1.0, out=target))
    yield "read, Triton sum, 8 warps", lambda: once / best_us(read(8))
    yield "read, Triton sum, 16 warps", lambda: once / best_us(read(16))


def product_rates() -> Iterator[tuple[str, Callable[[], float]]]:
    """Operations a second, of bf16, each shape to be asked."""
    for m, n, k in ((8192, 8192, 8192), (16384, 8192, 8192), (8192, 28672, 4096)):
        a, b = (torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for shape in ((m, k), (n, k)))
        amount = 2.0 * m * n * k * 1e6
        yield f"gemm, {m} x {n} x {k}", lambda a=a, b=b, amount=amount: amount / best_us(lambda: torch.mm(a, b.T))
