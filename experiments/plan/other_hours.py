"""Other hours of the agents' sessions than the one of the worked plan, on the deployment that it chose.

    python experiments/plan/other_hours.py FOLDER     # FOLDER/weka_claude_code/traces_710of739.tar.zst

`sessions.py` makes an hour of 160 of the 710 recorded sessions, and other ones by other seeds: 20 of them are served at
the rate of the first, beside 20 bootstrap samples of the first. The samples should scatter as the hours do.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from worked_plans import HERE, TRACES, sessions

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.metrics.slo import promise
from simkit.models.layout import Layout
from simkit.plan.fleet import replay_share
from simkit.plan.sweep import mean_rate
from simkit.plan.traffic import resampled
from simkit.workloads.readers import read_workload
from simkit.workloads.workload import Workload

HOURS = 20
SLO = promise({"ttft_p90_s": 5.0, "tpot_p90_s": 0.06})


def main() -> None:
    """Print the recorded hour's figures, and the scatter of both."""
    with tempfile.TemporaryDirectory() as scratch:
        first = sessions(Path(sys.argv[1]) / TRACES["agents"], Path(scratch))
        others = [hour(Path(scratch), seed) for seed in range(1, HOURS + 1)]
        recorded = read_workload(first)
    engine = EngineSettings(max_model_len=204_800, block_size=64)
    spec = resolve(
        Deployment(
            model="llama-4-scout", device="h200", layout=Layout(tensor=4), weights="fp8", kv="fp8", engine=engine
        )
    )
    rate = mean_rate(recorded)
    report("the recorded hour", spec, [recorded], rate)
    report("other hours", spec, others, rate)
    report("its samples", spec, [resampled(recorded, seed) for seed in range(1, HOURS + 1)], rate)


def hour(scratch: Path, seed: int) -> Workload:
    """Another hour; `sessions` has unpacked the recordings."""
    trace = scratch / f"{seed}.trace.jsonl.zst"
    command = [sys.executable, str(HERE / "sessions.py"), str(scratch / "sessions"), str(trace), "--seed", str(seed)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_workload(trace)


def report(name: str, spec: ReplicaSpec, days: Sequence[Workload], rate_per_s: float) -> None:
    """A line a figure: least, median, most; and how much is under way, and found in the cache."""
    seen = [replay_share(spec, day, 1, rate_per_s, SLO) for day in days]
    for key, digits in (("ttft_p90_s", 2), ("tpot_p90_s", 4)):
        values = np.round(np.quantile([one.figures[key] for one in seen], [0, 0.5, 1]), digits)
        print(f"{name}: {key} {values[0]} .. {values[1]} .. {values[2]}")
    found = float(np.mean([one.hit_tokens / one.prompt_tokens for one in seen]))
    running = float(np.mean([one.running_mean for one in seen]))
    print(f"{name}: {running:.2f} requests in a step, {100 * found:.1f} % of prompt tokens found in the cache")


if __name__ == "__main__":
    main()
