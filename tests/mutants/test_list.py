"""The list of mutants keeps up with the code; running it takes minutes (make test-all)."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ENGINE = HERE.parents[1] / "simkit" / "engine"


Mutant = tuple[str, str, str]
MUTANTS: list[Mutant] = runpy.run_path(str(HERE / "mutants.py"))["MUTANTS"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant[0]}: {mutant[1].strip()[:60]}")
def test_each_mutant_can_be_planted_and_is_python(mutant: Mutant) -> None:
    name, old, new = mutant
    text = (ENGINE / name).read_text()
    assert text.count(old) == 1
    compile(text.replace(old, new), name, "exec")


def test_there_are_many_and_no_two_are_the_same() -> None:
    assert len(set(MUTANTS)) == len(MUTANTS) >= 40


@pytest.mark.slow
def test_the_checks_kill_95_percent() -> None:
    # on a terminal one sees them go by
    done = subprocess.run([sys.executable, HERE / "run.py"], env=os.environ, check=False)
    assert done.returncode == 0
