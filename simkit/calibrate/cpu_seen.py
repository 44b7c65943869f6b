"""What this machine's CPU is, as the operating system tells."""

import os
import platform
import re
from pathlib import Path
from statistics import median

from simkit.calibrate.operator_profile import DeviceSeen


def cpu_seen(threads: int) -> DeviceSeen:
    """Name, threads bound, memory, clock now (where Linux says)."""
    text = _read(Path("/proc/cpuinfo"))
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    clocks = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", text, re.MULTILINE)]
    total = re.search(r"^MemTotal:\s*(\d+) kB$", _read(Path("/proc/meminfo")), re.MULTILINE)
    name = (named[1] if named else platform.processor() or platform.machine()).strip()
    return DeviceSeen(
        name=f"{name[:200]}, {os.cpu_count()} cores, {threads} {'thread' if threads == 1 else 'threads'}",
        multiprocessors=threads,
        memory_bytes=int(total[1]) * 1024 if total else None,
        driver=platform.platform()[:200],
        clock_mhz=median(clocks) if clocks and min(clocks) > 0 else None,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
