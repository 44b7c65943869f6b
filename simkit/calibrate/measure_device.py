"""The devices that can be measured: what each is timed with, and what a profile says of it."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from simkit.calibrate.measure import Bench
from simkit.calibrate.operator_profile import DeviceSeen, KernelSource
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.errors import InputError, suggestion
from simkit.models.device import known_devices, load_device
from simkit.versions import versions

KINDS = ("cuda", "cpu")
SIMKIT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class MeasuredDevice:
    """A device ready to be timed."""

    name: str  # as `simkit devices` calls it
    bench: Bench
    seen: Callable[[], DeviceSeen]  # asked when the measurement is over, so that clocks are those of it
    versions: Mapping[str, str]
    kernels: KernelSource
    host_copies: bool  # whether there is a host beside it to copy to and from
    close: Callable[[], None]  # to be called when nothing more is measured


def open_device(
    kind: str,
    name: str | None,
    dtype: str,
    threads: int,
    footprint_bytes: float,
    heads: Iterable[AttentionShape] = (),
) -> MeasuredDevice:
    """The CUDA device that torch finds, or this CPU.

    Args:
        kind: of KINDS.
        name: what the profile calls it; default found out (`cpu`, or the known device that the driver's name fits).
        dtype: of weights and activations.
        threads: of torch on a CPU.
        footprint_bytes: what a step on a CPU reads between two uses of one weight: operators find their data as cold as
            that. On a GPU a few times its L2 cache is enough.
        heads: the attention shapes of the models.

    Raises InputError: no such device or dtype here, or no torch.
    """
    if kind not in KINDS:
        raise InputError(f"--device {kind}: is not known; {suggestion(kind, KINDS)}")
    try:
        import torch
    except ImportError:
        raise InputError(
            "calibrate: torch is not installed; pip install 'simkit-serving[gpu]' (--device cpu: a CPU build will do)"
        ) from None
    found = versions() | {"torch": str(torch.__version__)}
    if kind == "cuda":
        return _cuda(name, dtype, tuple(sorted(heads)), found)
    return _cpu(name, dtype, threads, round(footprint_bytes), found)


def _cpu(name: str | None, dtype: str, threads: int, footprint_bytes: int, found: dict[str, str]) -> MeasuredDevice:
    from simkit.calibrate.cpu_bench import CpuBench
    from simkit.calibrate.cpu_seen import cpu_seen

    return MeasuredDevice(
        name=name or "cpu",
        bench=CpuBench(dtype, threads, footprint_bytes),
        seen=lambda: cpu_seen(threads),
        versions=found,
        kernels=KernelSource(
            name=f"torch {found['torch']} on a CPU, {dtype}",
            sha256=source_hash("calibrate", "cpu_*.py"),
            footprint_bytes=footprint_bytes,
        ),
        host_copies=False,
        close=lambda: None,
    )


def _cuda(name: str | None, dtype: str, heads: tuple[AttentionShape, ...], found: dict[str, str]) -> MeasuredDevice:
    import torch

    if not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device; use --device cpu, or install torch for CUDA")
    from simkit.calibrate.cuda_bench import CudaBench
    from simkit.calibrate.cuda_seen import ClockWatch
    from simkit.kernels.cold_timing import COLD_CACHES

    bench = CudaBench(dtype, heads)
    watch = ClockWatch()
    triton = __import__("triton").__version__
    cache_bytes = int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
    return MeasuredDevice(
        name=name or known_name(torch.cuda.get_device_name()),
        bench=bench,
        seen=watch.seen,
        versions=found | {"triton": str(triton), "cuda": str(torch.version.cuda)},
        kernels=KernelSource(
            name=f"simkit kernels and torch GEMM, {dtype}",
            sha256=source_hash("kernels", "*.py", "*.json"),
            footprint_bytes=COLD_CACHES * cache_bytes,
        ),
        host_copies=True,
        close=watch.stop,
    )


def known_name(driver_name: str) -> str:
    """The device of `simkit devices` that a driver's name fits, such as NVIDIA H200; InputError if none does."""
    words = driver_name.lower().replace("nvidia", " ").replace("-", " ").split()
    for count in range(len(words), 0, -1):
        try:
            return load_device("-".join(words[:count])).name
        except InputError:
            continue
    raise InputError(
        f"--name: the device calls itself {driver_name!r}, which is none of {', '.join(known_devices())}; name one, or "
        "a device file of your own"
    )


def source_hash(room: str, *patterns: str) -> str:
    """The sha256 over names and contents of a room's files: what was timed, to the letter."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in (SIMKIT / room).glob(pattern)}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
