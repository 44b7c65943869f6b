"""The command as users run it: a process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def simkit(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `simkit ARGUMENTS`, in a folder of its own, and returns what it printed and how it ended."""
    folder = tmp_path_factory.mktemp("cwd")

    def run(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", "from simkit.cli.main import entry; entry()", *map(str, arguments)]
        # errors are one line however narrow the terminal
        environment = {**os.environ, "COLUMNS": "40"}
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd or folder, env=environment, timeout=300)

    return run


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    """A small hand-made trace in Azure's form."""
    path = tmp_path / "trace.csv"
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:{i // 60:02}:{i % 60:02}.0000000,{100 + 7 * i},{1 + i % 40}" for i in range(120)]
    path.write_text("\n".join(lines) + "\n")
    return path
