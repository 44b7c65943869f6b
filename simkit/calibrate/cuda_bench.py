"""Operators timed on a CUDA device: cold data, CUDA-graph replay (`kernels/cold_timing.py`), no clock touched."""

import torch

from simkit.calibrate.cuda_host import HostTimer
from simkit.calibrate.cuda_operators import TORCH_DTYPES, CudaCalls, CudaRoom, cuda_calls
from simkit.calibrate.measure import UnmeasurableError
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.points import Point, has_kernel
from simkit.calibrate.timing import Repeat, Timer
from simkit.errors import InputError, suggestion
from simkit.kernels.cold_timing import Call, GraphTimer
from simkit.kernels.jit import KernelError

SENTINEL_SIZE = 4096  # of the sentinel's square product
SENTINEL_BYTES = 1 << 30  # that it reads


class CudaTimer:
    """A rotation of calls in a CUDA graph."""

    def __init__(self, rotation: list[Call], kernel: str) -> None:
        self.kernel = kernel
        self._timer = GraphTimer(rotation)

    def repeat(self) -> Repeat:
        """Device time of one call, ns."""
        return Repeat(self._timer.sample_us() * 1e3)


class CudaBench:
    """The current CUDA device."""

    pace_limit = 1.02

    def __init__(self, dtype: str, heads: tuple[AttentionShape, ...]) -> None:
        """`heads` are the attention shapes that elementwise passes over heads belong to.

        Raises InputError for a dtype that is not timed on CUDA.
        """
        if dtype not in ("bf16", "fp32"):
            raise InputError(f"--dtype {dtype}: is not timed on CUDA; {suggestion(dtype, ['bf16', 'fp32'])}")
        self._room = CudaRoom(torch.device("cuda", torch.cuda.current_device()), TORCH_DTYPES[dtype], heads)

    def timer(self, point: Point) -> Timer:
        """The operator at its size."""
        try:
            try:
                return self._timer(point)
            except torch.cuda.OutOfMemoryError:
                # what earlier points left in torch's cache may be in the way
                torch.cuda.empty_cache()
                return self._timer(point)
        # out of memory, a capture that fails, a shape that a kernel refuses, one that does not compile or fit
        except (RuntimeError, ValueError, KernelError) as error:
            torch.cuda.empty_cache()
            raise UnmeasurableError(" ".join(str(error).split())[:200]) from None

    def _timer(self, point: Point) -> Timer:
        if point.table == "host":
            return HostTimer(point, self._room.device)
        calls: CudaCalls = cuda_calls(point, self._room)
        return CudaTimer(calls.rotation, calls.kernel if has_kernel(point.table) else "")

    def sentinel(self) -> CudaTimer:
        """A large product and a long read."""
        x, w = self._room.normal(SENTINEL_SIZE, SENTINEL_SIZE), self._room.normal(SENTINEL_SIZE, SENTINEL_SIZE)
        memory = torch.zeros(SENTINEL_BYTES // 4, device=self._room.device)
        return CudaTimer([lambda: (x @ w, memory.sum())], "")
