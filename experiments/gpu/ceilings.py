"""What this machine reaches at best: reading, copying, multiplying bf16; of several ways the best counts."""

import torch
import triton.language as tl
from kernel_report import Ceilings

from simkit.kernels.cold_timing import Call, GraphTimer
from simkit.kernels.jit import jit

STREAM_BYTES = 4 << 30
BLOCK = 16384
SAMPLES = 9


@jit
def read_kernel(source: tl.pointer_type, out: tl.pointer_type, BLOCK: tl.constexpr) -> None:
    """The sum of one block, so that every byte must be read."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0), tl.sum(tl.load(source + lane), 0))


def best_us(call: Call) -> float:
    """The median of samples, microseconds."""
    timer = GraphTimer([call], least_ms=20.0)
    return sorted(timer.sample_us() for _ in range(SAMPLES))[SAMPLES // 2]


def measure() -> Ceilings:
    """All of them, in some ten seconds."""
    ways = {**stream_rates(), **product_rates()}
    best = {kind: max(rate for way, rate in ways.items() if way.startswith(kind)) for kind in ("read", "copy", "gemm")}
    return Ceilings(best["read"], best["copy"], best["gemm"], ways)


def stream_rates() -> dict[str, float]:
    """Bytes a second."""
    source = torch.ones(STREAM_BYTES // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    sums = torch.empty(len(source) // BLOCK, dtype=torch.float32, device="cuda")

    def read(warps: int) -> Call:
        return lambda: read_kernel[(len(sums),)](source, sums, BLOCK=BLOCK, num_warps=warps)

    once = STREAM_BYTES * 1e6
    return {
        "read, Triton sum, 8 warps": once / best_us(read(8)),
        "read, Triton sum, 16 warps": once / best_us(read(16)),
        "read, torch sum": once / best_us(lambda: source.sum()),
        "copy, torch copy_": 2 * once / best_us(lambda: target.copy_(source)),
        "copy, torch add": 2 * once / best_us(lambda: torch.add(source, 1.0, out=target)),
    }


def product_rates() -> dict[str, float]:
    """Operations a second, of bf16."""
    rates = {}
    for m, n, k in ((8192, 8192, 8192), (16384, 8192, 8192), (8192, 28672, 4096)):
        a, b = (torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for shape in ((m, k), (n, k)))
        rates[f"gemm, {m} x {n} x {k}"] = 2.0 * m * n * k * 1e6 / best_us(lambda a=a, b=b: torch.mm(a, b.T))
    return rates
