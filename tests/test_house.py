"""The rules of the house: imports run downward, torch and triton stay in their rooms, doors lead where they should."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "simkit"

# room -> the rooms it may import from, beside the files directly in simkit/
BELOW = {
    "models": set(),
    "workloads": {"models"},
    "metrics": {"models"},
    "kernels": {"models"},
    "calibrate": {"kernels", "models", "workloads", "metrics"},
    "engine": {"models", "workloads", "metrics"},
    "cluster": {"engine", "models", "workloads", "metrics"},
    "plan": {"cluster", "engine", "models", "workloads", "metrics", "calibrate"},
    "report": {"cluster", "engine", "models", "workloads", "metrics", "plan"},
    "fidelity": {"report", "calibrate", "engine", "models", "workloads", "metrics"},
    "serve": {"cluster", "engine", "models", "workloads", "metrics"},
    "testbed": {"cluster", "engine", "models", "workloads", "metrics", "kernels", "calibrate"},
}
HEAVY = {"torch", "triton"}
MEASURING = {"kernels", "calibrate", "testbed"}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", sorted(BELOW))
def test_imports_run_downward(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "simkit" and len(parts) > 2 and parts[1] != room:
                assert parts[1] in BELOW[room], f"{path.relative_to(ROOT)} imports {name}"


def test_every_room_is_known() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert rooms - {"cli"} == set(BELOW)


def test_only_measuring_rooms_import_torch_and_triton() -> None:
    for path in PACKAGE.rglob("*.py"):
        heavy = {name.split(".")[0] for name in imported(path)} & HEAVY
        if heavy:
            assert path.relative_to(PACKAGE).parts[0] in MEASURING, f"{path.relative_to(ROOT)} imports {heavy}"


def test_simulating_imports_neither_torch_nor_triton() -> None:
    modules = "simkit.cli.main, simkit.cli.config, simkit.plan.capacity, simkit.report.html, simkit.cluster.fleet"
    script = f"import sys, {modules}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_answers_help_before_it_loads_anything_heavy() -> None:
    heavy = {"numpy", "numba", "pandas", "pydantic", "scipy", "matplotlib", "simpy", "torch", "triton"}
    script = f"import sys, simkit.cli.main; print(sorted({{name.split('.')[0] for name in sys.modules}} & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("door", ["models", "kernels", "workloads", "calibrate"])
def test_doors_are_links_and_shadow_nobody(door: str) -> None:
    link = ROOT / door
    if not link.is_symlink():
        pytest.skip("this copy of the tree does not keep links")
    assert link.readlink() == Path("simkit") / door
    # a folder without __init__.py does not hide an installed package of the same name
    assert not (link / "__init__.py").exists()


def test_what_experiments_import_is_there() -> None:
    """Most of them take minutes, so nothing here runs them; what they name must exist all the same."""
    pytest.importorskip("torch", reason="some experiments measure; install the extra gpu, or its CPU build")
    pytest.importorskip("triton", reason="some experiments measure; install the extra gpu")
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("simkit"):
                module = importlib.import_module(node.module)
                lacking = [each.name for each in node.names if not hasattr(module, each.name)]
                assert not lacking, f"{path}: {node.module} has no {lacking}"
