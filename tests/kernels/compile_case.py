"""One way in which a kernel is shipped: what is compiled ahead of time, for every architecture."""

from typing import NamedTuple

from simkit.kernels.jit import Kernel


class Case(NamedTuple):
    """A kernel with the types of its arguments and the values of its constants.

    `signature` names every argument that is not a constant: `*bf16`, `*fp16`, `*fp32`, `*fp8e4nv`, `*i32`, `*i64` and
    so on for pointers; `i32`, `i64`, `fp32` for numbers. Pointers and whole numbers are taken to be multiples of 16, as
    the launcher's tensors and strides are, but for types that end in `!`, which are taken to be anything (`i32!`).
    Constants, and pointers that are None, are in `constexprs` and not in `signature`.
    """

    kernel: str  # of the table, such as `decode`
    label: str  # of the table, such as `d128 g4 p16 bf16`: unique among the kernel's cases
    function: Kernel  # the jit function
    signature: dict[str, str]
    constexprs: dict[str, object]
    num_warps: int
    num_stages: int
