"""Checks that hang, in processes of their own: what was measured is kept, what was cut is named, the rest goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments/gpu"
sys.path.insert(0, str(FOLDER))

from kernel_points import POINTS  # noqa: E402
from stages import LOST, Found, Stages, append  # noqa: E402
from watched import watch  # noqa: E402

# As a call that waits for a device: no signal that Python could handle gets through to it.
DEAF = """
import signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from stages import Stages
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
def sleeping(*rows):
    yield from rows
    time.sleep(1000)
stages = Stages(Path(sys.argv[2]))
"""


def watched(script: str, log: Path, most_cuts: int = 4) -> int:
    return watch([sys.executable, "-c", DEAF + script, str(FOLDER), str(log)], log, most_cuts, between_s=20.0)


def test_what_hangs_is_ended_and_the_rest_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = """
found = [stages.run(name, 0.5, work) for name, work in (
    ("first", lambda: iter([1.0, 2.0])),
    ("second", lambda: sleeping(3.0)),
    ("third", lambda: iter([4.0])),
    ("fourth", lambda: sleeping()),
)]
print([[list(one.rows), one.cut] for one in found])
sys.exit(5)
"""
    log, began = tmp_path / "new" / "stages.jsonl", time.monotonic()
    assert watched(script, log) == 5
    assert time.monotonic() - began < 15
    said = capfd.readouterr()
    late = "no answer in 0 s"
    assert said.out.strip() == str([[[1.0, 2.0], ""], [[3.0], late], [[4.0], ""], [[], late]])
    assert said.err.splitlines() == [f"cut: second: {late}", f"cut: fourth: {late}"]
    assert Stages(log).known("second") == Found([3.0], late)


def test_each_row_has_its_own_limit(tmp_path: Path) -> None:
    script = """
def slowly():
    for i in range(4):
        time.sleep(0.5)
        yield float(i)
sys.exit(stages.run("slow", 1.5, slowly).cut != "")
"""
    assert watched(script, tmp_path / "stages.jsonl") == 0


def test_a_process_that_dies_is_named_with_its_signal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = """
import os
def dying():
    yield "a row"
    os.abort()
cut = stages.run("check", 20.0, dying).cut
sys.exit(stages.run("after", 20.0, lambda: iter([1.0])).rows == [1.0] and "signal 6" in cut)
"""
    assert watched(script, tmp_path / "stages.jsonl") == 1
    assert "cut: check: its process was ended by signal 6" in capfd.readouterr().err


def test_a_process_that_lost_its_device_is_followed_by_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once in a stage, which is cut, and once behind one, which has its rows."""
    script = """
def losing():
    yield "a row"
    sys.exit(LOST)
first = stages.known("first")
stages.run("first", 20.0, losing)
second = stages.known("second")
stages.run("second", 20.0, lambda: iter(["whole"]))
if second is None:
    sys.exit(LOST)
print(first, second)
sys.exit(3)
"""
    assert watched("from stages import LOST" + script, tmp_path / "stages.jsonl") == 3
    said = capfd.readouterr()
    assert said.out.strip() == f"{Found(['a row'], 'its process lost the device')} {Found(['whole'], '')}"
    whys = [f"cut: {where}: its process lost the device" for where in ("first", "between stages")]
    assert said.err.splitlines() == whys


def test_a_lost_device_is_told_from_one_that_is_there(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    from device_lost import leave_if_lost

    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    leave_if_lost()  # nothing was asked of a device
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    leave_if_lost()
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    with pytest.raises(SystemExit) as left:
        leave_if_lost()
    assert left.value.code == LOST
    assert "the device is lost: CUDA error: an illegal memory access" in capfd.readouterr().err


def test_a_device_on_which_everything_hangs_is_given_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = "[stages.run(str(number), 0.3, sleeping) for number in range(9)]"
    assert watched(script, tmp_path / "stages.jsonl", most_cuts=2) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("given up; what was measured is in")
    log = tmp_path / "other.jsonl"
    silent = [sys.executable, "-c", DEAF + "time.sleep(1000)", str(FOLDER), str(log)]
    assert watch(silent, log, between_s=1.0) == 1
    assert "cut: between stages: no answer in 1 s" in capfd.readouterr().err


def test_who_ends_the_watcher_ends_the_process(tmp_path: Path) -> None:
    log, pid = tmp_path / "stages.jsonl", tmp_path / "pid"
    worker = f"import os\nPath({str(pid)!r}).write_text(str(os.getpid()))\nstages.run('check', 100.0, sleeping)"
    script = "import sys\nsys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\nfrom watched import watch\n"
    script += "sys.exit(watch([sys.executable, '-c', sys.argv[3], sys.argv[1], sys.argv[2]], Path(sys.argv[2])))"
    process = subprocess.Popen([sys.executable, "-c", script, str(FOLDER), str(log), DEAF + worker])
    until = time.monotonic() + 20
    while not log.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    time.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_half_a_line_is_no_line(tmp_path: Path) -> None:
    log = tmp_path / "stages.jsonl"
    append(log, {"stage": "check", "limit_s": 1.0, "row": 2.5})
    with log.open("a", encoding="utf-8") as file:
        file.write('{"stage": "check", "limit_s": 1.0, "ro')
    assert Stages(log).known("check") == Found([2.5], "its process died")


# kernels.py itself with a device of make-believe: one check and one way of torch's hang.
KERNELS = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import ceilings, kernel_checks, kernels, point_timing
from kernel_report import Ceilings, Timing
from kernel_calls import Calls
from stages import Stages
def attention(sizes):
    yield "decode", "bf16", 1e-3, 1e-2
    time.sleep(1000)
def rows(sizes):
    yield "rms_norm", "bf16", 1e-3, 1e-2
def make(way):
    if way == (kernels.POINTS[0].label, HUNG):
        time.sleep(1000)
    return Timing(5.0, 4.0, 6.0)
HUNG = kernels.POINTS[0].against[-1]
kernels.require_device = lambda: None
kernels.describe = lambda: {"device": "made up", "date": "2026-01-01"}
kernel_checks.GROUPS = (attention, rows)
kernel_checks.CHECK_S = point_timing.WAY_S = 0.5
ceilings.all_rates = lambda: iter([["read", 4e12], ["copy", 4e12], ["gemm", 8e14]])
kernels.POINTS = kernels.POINTS[:2]
point_timing.calls_of = lambda point: Calls("ours", {way: (point.label, way) for way in point.against})
point_timing.time_call = make
out = Path(sys.argv[2])
checks = kernels.measure(out, 1e9, 0.0, Stages(out / "stages.jsonl"))
sys.exit(int(any(not check.passed for check in checks)))
"""


def test_a_run_of_the_kernels_keeps_what_was_measured_around_what_hangs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", KERNELS, str(FOLDER), str(tmp_path)]
    assert watch(command, tmp_path / "stages.jsonl", between_s=60.0) == 1
    cuts = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cut: ")]
    late = "no answer in 0 s"
    assert cuts == [f"cut: checks: attention: {late}", f"cut: point 1: {POINTS[0].label}: {late}"]
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert [(check["kernel"], check["passed"], check["failed"]) for check in record["checks"]] == [
        ("decode", True, ""),
        ("attention", False, late),
        ("rms_norm", True, ""),
    ]
    first, second = record["points"]
    assert first["failed"] == second["failed"] == ""
    assert POINTS[0].against[-1] in str(first)
    assert late in (tmp_path / "kernels.md").read_text()
    assert record["left_out"] == []
