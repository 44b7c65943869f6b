"""Plant each mistake of mutants.py in a copy of the package and see whether the checks notice.

    python tests/mutants/run.py [TEXT ..]     only mutants whose file or text contains one of these

Prints one line a mutant and the share that was noticed ("killed"); exit code 1 below 95 %.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutants import MUTANTS, Mutant

CHECKOUT = Path(__file__).resolve().parents[2]
HAND_WORKED = ("test_schedule_by_hand.py", "test_rules_by_hand.py", "test_orderings.py")
LONGEST_S = 150.0  # the detector takes 60 s on the unharmed package; a mutant that does not end is noticed
REQUIRED = 0.95


def main() -> int:
    """Run all mutants, or those that contain a word given."""
    words = sys.argv[1:] or [""]
    chosen = [mutant for mutant in MUTANTS if any(word in mutant[0] or word in mutant[1] for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_the_checkout(Path(folder))
        first = noticed(copy)
        if first is not None:
            print(f"the checks fail without a mutant: {first}")
            return 2
        killed = sum(report(copy, mutant) for mutant in chosen)
    print(f"{killed} of {len(chosen)} killed, {100 * killed / max(1, len(chosen)):.1f} %")
    return 0 if killed >= REQUIRED * len(chosen) else 1


def copy_of_the_checkout(folder: Path) -> Path:
    """The package and its tests under `folder`, with the shared recordings beside them, if they are there."""
    copy = folder / "checkout"
    shutil.copytree(CHECKOUT / "simkit", copy / "simkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / "tests" / "engine", copy / "tests" / "engine")
    shutil.copytree(CHECKOUT / "tests" / "mutants", copy / "tests" / "mutants")
    shutil.copytree(CHECKOUT / "tests" / "conformance", copy / "tests" / "conformance")
    for name in ("tests/conftest.py", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, copy / name)
    shared = CHECKOUT.parent / "shared"
    if shared.is_dir():
        (folder / "shared").symlink_to(shared)
    return copy


def report(copy: Path, mutant: Mutant) -> bool:
    """Plant one mutant, print what became of it, take it out again; returns whether it was noticed."""
    name, old, new = mutant
    file = copy / "simkit" / "engine" / name
    text = file.read_text()
    assert text.count(old) == 1, f"{name}: {old!r} occurs {text.count(old)} times"
    file.write_text(text.replace(old, new))
    begin = time.monotonic()
    by = noticed(copy)
    file.write_text(text)
    outcome = "SURVIVED" if by is None else f"killed by {by}"
    changed = f"{old.strip()!r} -> {new.strip()!r}"
    print(f"{name:12} {changed[:110]:110} {outcome} ({time.monotonic() - begin:.0f} s)", flush=True)
    return by is not None


def noticed(copy: Path) -> str | None:
    """The first check that fails on the copy, or None if all pass."""
    # a few histories first: they have a time limit, and a mutant may well not end
    files = [f"tests/mutants/detector.py::test_rules[{seed}]" for seed in range(5)]
    files += [f"tests/engine/{name}" for name in HAND_WORKED] + ["tests/mutants/detector.py"]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "the time limit"
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split()[1].rsplit("/", 1)[-1] if failed else f"exit code {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
