"""Kernels run in Triton's interpreter here: programs one after the other, in numpy, on CPU tensors."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

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
def exact_numbers() -> Iterator[None]:
    """bf16 and fp8 as hardware has them: the interpreter has them wrong."""
    from simkit.kernels.interpreter_numbers import exact_numbers

    with exact_numbers():
        yield
