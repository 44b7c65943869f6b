"""What does prefix-aware routing bring, on a trace that shares much and on one that shares nothing?

    python experiments/cluster/prefix_routing.py FOLDER [--replicas 16] [--out experiments/cluster/results]

FOLDER holds mooncake/conversation_trace.jsonl.gz (GitHub: kvcache-ai/Mooncake @ 3b5a594, FAST25-release/traces,
Apache-2.0). Its arrivals are squeezed so that each replica has a fixed share of the trace's own rate; ticks of 3 s are
spread with five seeds, and everything is paired by seed. The other workload is the preset azure-conv-2023.
"""

import argparse
import csv
import json
import math
from pathlib import Path

import numpy as np
from scipy import stats

from simkit.cluster.fleet import serve_fleet
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.workloads.presets import preset
from simkit.workloads.readers import read_workload
from simkit.workloads.transform import fit_context, rate_to, spread_ticks, time_scale
from simkit.workloads.workload import Workload

ROUTERS = ("round_robin", "least_outstanding", "prefix_aware", "kv_overlap", "weighted")
SEEDS = 5
BASE = ROUTERS[0]


def figures(workload: Workload, spec: ReplicaSpec, replicas: int, router: str, seed: int) -> dict[str, float]:
    """Hit rate and TTFT of one run."""
    requests = serve_fleet(workload, [spec] * replicas, router, seed).requests
    ttft_s = (requests.first_token_ns - requests.arrival_ns) / 1e9
    return {
        "hit_rate": float(requests.hit_tokens.sum() / requests.prompt_tokens.sum()),
        "ttft_mean_s": float(ttft_s.mean()),
        "ttft_p99_s": float(np.quantile(ttft_s, 0.99)),
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of Student's 95 % interval."""
    array = np.array(values)
    half = float(stats.t.ppf(0.975, len(array) - 1)) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean()), float(half)


def compared(name: str, workloads: list[Workload], spec: ReplicaSpec, replicas: int) -> list[dict[str, object]]:
    """A row for each router: means over the seeds, and the paired difference to round robin."""
    found = {
        router: [figures(workload, spec, replicas, router, seed) for seed, workload in enumerate(workloads)]
        for router in ROUTERS
    }
    rows = []
    for router, runs in found.items():
        row: dict[str, object] = {"workload": name, "router": router}
        for key in runs[0]:
            row[key] = round(interval([run[key] for run in runs])[0], 4)
            mean, half = interval([run[key] - base[key] for run, base in zip(runs, found[BASE], strict=True)])
            row[f"{key}_minus_{BASE}"] = round(mean, 4)
            row[f"{key}_half_width"] = round(half, 4)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    """Run both workloads through all routers and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("experiments/cluster/results"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    trace = read_workload(given.folder / "mooncake/conversation_trace.jsonl.gz")
    shared = [
        fit_context(time_scale(spread_ticks(trace, seed), 4 / given.replicas), spec.limits.max_model_len)
        for seed in range(SEEDS)
    ]
    alone = [
        rate_to(preset("azure-conv-2023", requests=8000, seed=seed, arrivals="poisson"), 10.0 * given.replicas)
        for seed in range(SEEDS)
    ]
    rows = compared("mooncake-conversation", shared, spec, given.replicas)
    rows += compared("azure-conv-2023, nothing shared", alone, spec, given.replicas)
    with (given.out / "prefix_routing.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
