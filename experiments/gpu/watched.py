"""Run a script of stages in a process of its own, and end that process where a stage is late.

A process that is killed loses its CUDA context, hung kernels and all; the next one gets a fresh one on the same device.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stages import BETWEEN_S, LOST, append, last_line

MOST_CUTS = 4  # beyond, the device, not a kernel, is at fault, and the time is over
POLL_S = 0.2
DYING_S = 15.0  # from the kill to the end of the process, which waits for the driver
LEAVE_S = 20.0  # after an interrupt: to write what there is


def watch(command: Sequence[str], log: Path, most_cuts: int = MOST_CUTS, between_s: float = BETWEEN_S) -> int:
    """The exit code of `command`, which writes `log` by `stages.Stages`; begun anew after each stage that was cut, and
    where it ends with LOST.

    1 where it was cut too often, hung with no stage under way, or could not be killed. What was cut is said on stderr.
    `between_s` is the limit until its first line.
    """
    log.unlink(missing_ok=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for left in reversed(range(most_cuts + 1)):
            code, going_on = _once(command, log, between_s)
            if not going_on or left == 0:
                break
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if code is None:
        print(f"given up; what was measured is in {log.parent}", file=sys.stderr, flush=True)
    return 1 if code is None else code


def _once(command: Sequence[str], log: Path, between_s: float) -> tuple[int | None, bool]:
    """One process: its exit code if it came to its end, and whether another can go on behind a stage that was cut."""
    worker = subprocess.Popen(command)
    try:
        why = _late(worker, log, between_s)
    except KeyboardInterrupt:
        _leave(worker)
        raise
    finally:  # it must not outlive this one, whatever ends that
        ended = worker.poll() is not None or _killed(worker)
    lost = why is None and worker.returncode == LOST
    if why is None and worker.returncode >= 0 and not lost:
        return worker.returncode, False
    why = why or ("its process lost the device" if lost else f"its process was ended by signal {-worker.returncode}")
    name = _under_way(log)
    print(f"cut: {name or 'between stages'}: {why}", file=sys.stderr, flush=True)
    if not ended:
        print("its process cannot be ended: the driver does not let go of it", file=sys.stderr, flush=True)
    if name is not None:
        append(log, {"stage": name, "cut": why})
    return None, ended and (name is not None or lost)


def _late(worker: "subprocess.Popen[bytes]", log: Path, between_s: float) -> str | None:
    """Wait until a line is late, and say so. None: the process ended by itself."""
    size, limit_s, since_s = _size(log), between_s, time.monotonic()
    while True:
        try:
            worker.wait(timeout=POLL_S)
            return None
        except subprocess.TimeoutExpired:
            pass
        if _size(log) != size:
            size, since_s = _size(log), time.monotonic()
            limit_s = float(str((last_line(log) or {}).get("limit_s", between_s)))
        if time.monotonic() - since_s > limit_s:
            return f"no answer in {limit_s:.0f} s"


def _killed(worker: "subprocess.Popen[bytes]") -> bool:
    worker.kill()
    try:
        worker.wait(timeout=DYING_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _leave(worker: "subprocess.Popen[bytes]") -> None:
    """The interrupt went to the whole group: let the process write what it has, unless it hangs."""
    try:
        worker.wait(timeout=LEAVE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        _killed(worker)


def _under_way(log: Path) -> str | None:
    """The stage that was begun and did not end."""
    last = last_line(log)
    return None if last is None or "end" in last or "cut" in last else str(last["stage"])


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
