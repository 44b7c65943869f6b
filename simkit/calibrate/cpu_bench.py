"""Operators timed on this machine's CPU, with a bound number of threads.

On one thread the clock is the thread's own CPU time: another process that takes the core for a while is not counted.
With several it is wall time. A repeat in which the system took a core away is marked as disturbed: even where the time
away does not count, caches come back cold.
"""

import ctypes
import resource
import time

import torch

from simkit.calibrate.cpu_memory import Arena
from simkit.calibrate.cpu_operators import TORCH_DTYPES, Call, cpu_call
from simkit.calibrate.measure import UnmeasurableError
from simkit.calibrate.points import Point, has_kernel
from simkit.calibrate.timing import Repeat
from simkit.errors import InputError, suggestion

REPEAT_NS = 400_000  # a repeat is at least so long
MOST_CALLS = 256  # in one repeat
WARM_UPS = 2
SENTINEL_SIZE = 512
LARGEST_FOOTPRINT_BYTES = 512 << 20
KEPT_BYTES = 1 << 30
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h


class CpuTimer:
    """A call, repeated often enough a repeat."""

    def __init__(self, call: Call, kernel: str, threads: int) -> None:
        self.kernel = kernel
        self._call, self._threads = call, threads
        self._run(WARM_UPS)
        self._calls = max(1, min(MOST_CALLS, -(-REPEAT_NS // max(1, self._run(1)))))

    def repeat(self) -> Repeat:
        """Time of one call, ns."""
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        ns = self._run(self._calls)
        calm = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == taken
        return Repeat(max(ns, 1) / self._calls, calm)

    def _run(self, calls: int) -> int:
        with torch.inference_mode():
            start = self._now_ns()
            for _ in range(calls):
                self._call()
            return self._now_ns() - start

    def _now_ns(self) -> int:
        return time.thread_time_ns() if self._threads == 1 else time.perf_counter_ns()


def _keep_memory() -> None:
    """Tell glibc not to give large freed blocks back: page faults would be timed at some calls and not at others."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(option, KEPT_BYTES)


class CpuBench:
    """This machine's CPU."""

    pace_limit = 1.05

    def __init__(self, dtype: str, threads: int, footprint_bytes: float) -> None:
        """Bind torch to `threads` threads; `footprint_bytes` is what a step streams between two uses of a weight.

        Raises InputError for a dtype that the CPU path does not have, or a number of threads that torch refuses.
        """
        if dtype not in TORCH_DTYPES:
            raise InputError(f"--dtype {dtype}: is not timed on a CPU; {suggestion(dtype, TORCH_DTYPES)}")
        if threads < 1:
            raise InputError(f"--threads {threads}: at least 1 is wanted")
        torch.set_num_threads(threads)
        _keep_memory()
        self.threads = threads
        self._arena = Arena(int(min(footprint_bytes, LARGEST_FOOTPRINT_BYTES)), TORCH_DTYPES[dtype])
        self._kernel = f"torch {torch.__version__}"

    def timer(self, point: Point) -> CpuTimer:
        """The operator at its size."""
        with torch.inference_mode():
            try:
                call = cpu_call(point, self._arena)
                return CpuTimer(
                    torch.inference_mode()(call), self._kernel if has_kernel(point.table) else "", self.threads
                )
            except (RuntimeError, MemoryError) as error:
                raise UnmeasurableError(" ".join(str(error).split())[:200]) from None

    def sentinel(self) -> CpuTimer:
        """A product of 256 rows, and a pass over memory."""
        x, w = self._arena.one(SENTINEL_SIZE // 2, SENTINEL_SIZE), self._arena.views(SENTINEL_SIZE, SENTINEL_SIZE)
        memory = torch.zeros(1 << 22)
        return CpuTimer(lambda: (x @ next(w), memory.add_(1.0)), "", self.threads)
