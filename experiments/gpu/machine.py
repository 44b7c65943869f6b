"""The machine that measures: device, driver, versions, clocks, power, date; and that it has a device at all."""

import datetime
import platform
import shutil
import subprocess
import sys

QUERIES = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu")


def require_device() -> None:
    """Leave with one line where there is no CUDA device; nothing has been asked of one before."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("no CUDA device: this script measures one; run it on a machine with an NVIDIA GPU")


def describe() -> dict[str, object]:
    """What to print beside every number."""
    import torch
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "L2 cache": f"{getattr(properties, 'L2_cache_size', 0) / 2**20:.0f} MiB",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        **telemetry(),
    }


def telemetry() -> dict[str, object]:
    """Driver, clocks, power and temperature as nvidia-smi sees them now; nothing where it is not there or hangs."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if done.returncode:
        return {}
    return dict(zip(QUERIES, (value.strip() for value in done.stdout.split(",")), strict=False))
