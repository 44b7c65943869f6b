"""`triton.jit`, with types that the checker knows."""

from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import triton
from triton.errors import TritonError
from triton.runtime.interpreter import InterpretedFunction

# a kernel that does not compile, or needs more than the device has: no RuntimeError, as torch's are
KernelError: type[Exception] = TritonError


class Kernel(Protocol):
    """A compiled kernel: `kernel[grid](*arguments)` runs grid[0] x grid[1] x grid[2] programs of it."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        """The kernel on a grid, to be called with its arguments."""
        ...


def jit(function: Callable[..., None]) -> Kernel:
    """Compile `function` with Triton when it is first launched on a grid."""
    return cast(Kernel, triton.jit(function))


Device = TypeVar("Device", bound=Callable[..., object])


def inlined(function: Device) -> Device:
    """Let kernels call `function`; it becomes part of each."""
    return cast(Device, triton.jit(function))


def interpreted(kernel: Kernel) -> bool:
    """Whether programs run one after the other in numpy, on CPU tensors: TRITON_INTERPRET=1 at import."""
    return isinstance(kernel, InterpretedFunction)
