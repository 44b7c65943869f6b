"""What Triton makes of every shipped configuration for sm_90; no GPU is needed to compile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

HOPPER_SHARED_BYTES = 232_448  # a block's most on compute capability 9.0, CUDA C Programming Guide, table of limits
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@pytest.fixture(scope="module")
def code() -> list[dict[str, object]]:
    missing = [tool for tool in ("cuobjdump", "nvdisasm", "ptxas") if not (TOOLS / tool).exists()]
    if missing:
        pytest.skip(f"this Triton does not bring {', '.join(missing)}")
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_for_hopper.py")
    done = subprocess.run([sys.executable, script], env=plain, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_case_of_every_kernel_was_compiled(code: list[dict[str, object]]) -> None:
    assert [case["kernel"] for case in code[:3]] == ["decode", "reduce", "prefill"]
    assert len(code) == 24


def test_shared_memory_fits_a_hopper_block(code: list[dict[str, object]]) -> None:
    assert [case for case in code if int(str(case["shared_bytes"])) > HOPPER_SHARED_BYTES] == []


def test_no_register_is_spilled(code: list[dict[str, object]]) -> None:
    assert [case for case in code if case["spills"] or case["stack_bytes"]] == []


def test_16_bit_kernels_use_tensor_cores_and_asynchronous_copies(code: list[dict[str, object]]) -> None:
    narrow = [case for case in code if case["dtype"] != "fp32"]
    assert [case for case in narrow if case["kernel"] == "prefill" and not case["wgmma"]] == []
    assert [case for case in narrow if case["kernel"] == "decode" and not (case["mma"] or case["wgmma"])] == []
    assert [case for case in narrow if case["kernel"] == "decode" and not case["cp_async"]] == []
