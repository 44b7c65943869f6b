"""bf16 and fp8 as hardware has them, in Triton's interpreter, which has them wrong (Triton 3.6 and 3.9, issue 11584).

It holds bf16 as the bits of a uint16 and multiplies those in `tl.dot`, and cuts f32 off, to bf16 and to e4m3, where
`cvt.rn` rounds to the nearest: 0.25 at 4.75 in e4m3. Only for checks without a GPU. What replaces it is torch's own
rounding, so no result here shows how a GPU rounds. Other arithmetic in bf16 stays wrong: kernels do theirs in f32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@contextmanager
def exact_numbers() -> Iterator[None]:
    """Within it the interpreter multiplies bf16 and rounds to bf16 and e4m3 as hardware does."""
    create_dot, convert_float = InterpreterBuilder.create_dot, interpreter._convert_float

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        # exact, and what tensor cores do
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: object) -> TensorHandle:
        return create_dot(self, widened(a), widened(b), *rest)

    def rounded(data: np.ndarray, source: tl.dtype, target: tl.dtype, mode: object) -> object:
        if source == tl.float32 and target == tl.bfloat16:
            return torch.tensor(data).bfloat16().view(torch.uint16).numpy()
        if source == tl.float32 and target == tl.float8e4nv:
            return torch.tensor(data).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return convert_float(data, source, target, mode)

    InterpreterBuilder.create_dot, interpreter._convert_float = dot, rounded
    try:
        yield
    finally:
        InterpreterBuilder.create_dot, interpreter._convert_float = create_dot, convert_float
