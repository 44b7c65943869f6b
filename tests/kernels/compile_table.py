"""Compile every shipped configuration without a GPU and say what came out: registers, shared memory, spills.

    python tests/kernels/compile_table.py 90 100     prints a JSON line a case
    python tests/kernels/compile_table.py --write    makes code_table.csv anew, for every architecture

Run in a process of its own, without TRITON_INTERPRET: kernels are defined for one of the two.
"""

import csv
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parent))
from compile_case import Case

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TABLE = Path(__file__).with_name("code_table.csv")
ARCHITECTURES = (80, 90, 100)
ROOMS = ("compile_cases_attention", "compile_cases_other")
COUNTED = {  # instructions by their names in the machine code
    "spills": r"\b(?:STL|LDL)\b",
    "mma": r"\b[HIQ]MMA\b",
    "wgmma": r"\b[HIQ]GMMA\b",
    "tcgen05": r"\bUTC[HIQO]MMA\b",
    "cp_async": r"\bLDGSTS\b",
}
COLUMNS = ("kernel", "label", "architecture", "triton", "registers", "shared_bytes", "stack_bytes", *COUNTED)


def all_cases(architecture: int) -> list[Case]:
    """The cases of every room that is there."""
    rooms = [importlib.import_module(room) for room in ROOMS if importlib.util.find_spec(room)]
    return [case for room in rooms for case in room.cases(architecture)]


def compiled(case: Case, architecture: int):  # type: ignore[no-untyped-def]
    """The kernel as the launcher would have it."""
    signature, attrs = {}, {}
    for i, parameter in enumerate(case.function.params):  # type: ignore[attr-defined]
        kind = case.signature.get(parameter.name, "constexpr")
        signature[parameter.name] = kind.rstrip("!")
        if kind[0] in "*iu" and not kind.endswith("!"):
            attrs[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=case.function, signature=signature, constexprs=case.constexprs, attrs=attrs)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def figures(code) -> dict[str, int]:  # type: ignore[no-untyped-def]
    """Registers, shared memory and stack in bytes, and how often each counted instruction stands in the code."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(code.asm["cubin"])
        use = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True)
        sass = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    return {
        "registers": int(re.search(r"REG:(\d+)", use.stdout)[1]),
        "shared_bytes": code.metadata.shared,
        "stack_bytes": int(re.search(r"STACK:(\d+)", use.stdout)[1]),
        **{name: len(re.findall(pattern, sass)) for name, pattern in COUNTED.items()},
    }


def rows(architectures: Iterable[int]) -> Iterator[dict[str, object]]:
    """A row of the table for each case of each architecture, and what it was compiled with."""
    for architecture in architectures:
        for case in all_cases(architecture):
            named = {"kernel": case.kernel, "label": case.label, "architecture": architecture}
            tiles = {name: value for name, value in case.constexprs.items() if isinstance(value, int)}
            launch = {"constants": tiles, "num_warps": case.num_warps, "num_stages": case.num_stages}
            yield {**named, "triton": triton.__version__, **figures(compiled(case, architecture)), **launch}


def main(arguments: list[str]) -> None:
    if arguments == ["--write"]:
        found = list(rows(ARCHITECTURES))
        with TABLE.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(found)
        return
    for row in rows(int(argument) for argument in arguments):
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
