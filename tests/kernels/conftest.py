"""Kernels run in Triton's interpreter here: programs one after the other, in numpy, on CPU tensors."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before any import of one
sys.path.insert(0, str(Path(__file__).parent))  # for kernel_batches

MISSING = [name for name in ("torch", "triton") if find_spec(name) is None]


class Unavailable(pytest.Module):
    """A file of tests that cannot run here."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        """Nothing, with a reason."""
        pytest.skip(f"{' and '.join(MISSING)} not installed; the kernels need both", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Skip this folder where its libraries are missing; simulating and planning need neither."""
    return Unavailable.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session", autouse=True)
def bfloat16_dot() -> Iterator[None]:
    """Let the interpreter multiply bf16: it holds bf16 as the bits of a uint16 and multiplies those (triton 11584).

    The operands are widened to the f32 values that the bits mean, which is exact and what tensor cores do.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    as_it_is = InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return as_it_is(self, widened(a), widened(b), d, *options)

    InterpreterBuilder.create_dot = create_dot
    yield
    InterpreterBuilder.create_dot = as_it_is
