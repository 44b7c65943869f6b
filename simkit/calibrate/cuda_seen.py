"""What the driver says of a CUDA device while it is measured: clocks, power, temperature, what throttles it."""

import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from statistics import median

import torch

from simkit.calibrate.operator_profile import DeviceSeen

QUERY = (
    "clocks.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "clocks_throttle_reasons.active",
    "driver_version",
)
EVERY_MS = 500
IDLE = 0x1  # a reason that throttles nothing
REASONS = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
    0x100: "display clocks",
}  # NVML, nvmlClocksThrottleReasons


class ClockWatch:
    """`nvidia-smi` running beside the measurement, a line every half second; nothing where it is not installed."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed with the process
        command = [
            "nvidia-smi",
            f"--query-gpu={','.join(QUERY)}",
            "--format=csv,noheader,nounits",
            f"--loop-ms={EVERY_MS}",
            f"--id={_drivers_id()}",
        ]
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(
                command, stdout=self._file, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            self._process = None

    def seen(self) -> DeviceSeen:
        """The medians so far; None for what was not said."""
        self._file.seek(0)
        lines = read_lines(self._file.read().splitlines())
        self._file.seek(0, 2)
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return device_seen(properties.name, properties.multi_processor_count, properties.total_memory, lines)

    def stop(self) -> None:
        """End the process that was started."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def _drivers_id() -> str:
    """How `nvidia-smi` names torch's device; its numbers are not those of what CUDA_VISIBLE_DEVICES leaves."""
    index = torch.cuda.current_device()
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return str(index)
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def read_lines(lines: Iterable[str]) -> list[list[str]]:
    """The fields of each whole line."""
    fields = [[part.strip() for part in line.split(",")] for line in lines]
    return [parts for parts in fields if len(parts) == len(QUERY)]


def device_seen(name: str, multiprocessors: int, memory_bytes: int, lines: Sequence[Sequence[str]]) -> DeviceSeen:
    """The medians of `nvidia-smi`'s lines; a field that is not a number says nothing."""

    def middle(column: str) -> float | None:
        values = [_number(line[QUERY.index(column)]) for line in lines]
        known = [value for value in values if value is not None and value > 0]
        return median(known) if known else None

    return DeviceSeen(
        name=name,
        multiprocessors=multiprocessors,
        memory_bytes=memory_bytes,
        driver=lines[-1][QUERY.index("driver_version")] if lines else None,
        clock_mhz=middle("clocks.sm"),
        memory_clock_mhz=middle("clocks.mem"),
        power_w=middle("power.draw"),
        power_limit_w=middle("power.limit"),
        temperature_c=middle("temperature.gpu"),
        throttled=throttled([line[QUERY.index("clocks_throttle_reasons.active")] for line in lines]) if lines else None,
    )


def throttled(masks: Sequence[str]) -> str:
    """The reasons that held at any time and in what share of the looks; empty if none."""
    found = []
    for bit, word in REASONS.items():
        held = sum(bool(_mask(mask) & bit) for mask in masks)
        if held:
            found.append(f"{word} {held / len(masks):.0%}")
    return ", ".join(found)


def _mask(text: str) -> int:
    try:
        return int(text, 16) & ~IDLE
    except ValueError:
        return 0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
