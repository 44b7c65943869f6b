"""What Triton makes of every shipped configuration; no GPU is needed to compile."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import triton

from simkit.kernels.configurations import Configuration, read

# a block's most, opted in: CUDA C Programming Guide, technical specifications per compute capability
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
HERE = Path(__file__).parent
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
ATTENTION = ("decode", "mla_decode", "prefill")
Row = Mapping[str, Any]


@pytest.fixture(
    scope="module",
    params=[90, pytest.param(80, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.slow)],
    ids=lambda architecture: f"sm_{architecture}",
)
def code(request: pytest.FixtureRequest) -> list[Row]:
    """A row for each case, compiled now in a process without the interpreter."""
    missing = [tool for tool in ("cuobjdump", "nvdisasm", "ptxas") if not (TOOLS / tool).exists()]
    if missing:
        pytest.skip(f"this Triton does not bring {', '.join(missing)}")
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, HERE / "compile_table.py", str(request.param)]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def committed() -> dict[tuple[str, str, int], dict[str, str]]:
    with (HERE / "code_table.csv").open(encoding="utf-8") as file:
        return {(row["kernel"], row["label"], int(row["architecture"])): row for row in csv.DictReader(file)}


def key_of(row: Row) -> tuple[str, str, int]:
    return row["kernel"], row["label"], row["architecture"]


def test_nothing_is_spilled(code: list[Row]) -> None:
    assert [row for row in code if row["spills"] or row["stack_bytes"]] == []


def test_shared_memory_fits_a_block(code: list[Row]) -> None:
    assert [row for row in code if row["shared_bytes"] > SHARED_BYTES[row["architecture"]]] == []


def test_16_bit_attention_uses_tensor_cores_and_asynchronous_copies(code: list[Row]) -> None:
    narrow = [row for row in code if row["kernel"] in ATTENTION and "fp32" not in row["label"]]
    assert {row["kernel"] for row in narrow} == set(ATTENTION)
    assert [row for row in narrow if not row["cp_async"]] == []
    assert [row for row in narrow if not (row["mma"] or row["wgmma"] or row["tcgen05"])] == []
    # Hopper's and Blackwell's own instructions, which take 64 rows at least: prefill's tiles have them
    own = {90: "wgmma", 100: "tcgen05"}.get(code[0]["architecture"])
    assert own is None or [row for row in narrow if row["kernel"] == "prefill" and not row[own]] == []


def test_the_committed_table_is_of_these_cases_and_nothing_grew(code: list[Row]) -> None:
    architecture = code[0]["architecture"]
    table = committed()
    named = {key_of(row) for row in code}
    assert len(named) == len(code), "labels are unique"
    anew = "run `python tests/kernels/compile_table.py --write` and look at the difference"
    assert named == {key for key in table if key[2] == architecture}, anew
    # another compiler counts registers otherwise, and has the tests above to pass
    same = [row for row in code if row["triton"] == table[key_of(row)]["triton"]]
    if not same:
        pytest.skip(f"the table is of another Triton than {triton.__version__}")
    for column in ("registers", "shared_bytes"):
        grown = [row for row in same if row[column] > int(table[key_of(row)][column])]
        assert grown == [], f"more {column} than in the table; if that is meant, {anew}"


def test_every_configuration_was_compiled(code: list[Row]) -> None:
    # 16-bit types are alike to the compiler; fp8 is not
    table = [entry for entry in read() if entry.architecture == code[0]["architecture"]]
    assert [entry for entry in table if not any(compiled_with(row, entry) for row in code)] == []


def compiled_with(row: Row, entry: Configuration) -> bool:
    launch = (row["kernel"], row["num_warps"], row["num_stages"]) == (entry.kernel, entry.num_warps, entry.num_stages)
    dtypes = [("fp32", "dtype"), ("fp8e4nv", "cache")]
    typed = all((name in row["label"]) == (entry.where[key] == name) for name, key in dtypes if key in entry.where)
    return launch and typed and entry.constants.items() <= row["constants"].items()
