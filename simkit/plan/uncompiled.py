"""The same source as plain Python, for comparison: in a process of its own, where compilation is switched off."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

from simkit.plan.speed import CASES, Case, Speed, measure

REQUESTS = 50


def uncompiled_speed() -> Speed:
    """The first case at a small size without compilation."""
    command = [sys.executable, "-m", "simkit.plan.uncompiled"]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return Speed(**json.loads(done.stdout))


if __name__ == "__main__":
    first = CASES[0]
    small = Case(f"{first.name}, uncompiled", REQUESTS, first.load, first.caching, first.workload)
    print(json.dumps(asdict(measure(small, repeats=1))))
