"""What does a request cost, by router and by the number of replicas? CPU time of one core, after compilation.

All routers and sizes, medians of five runs each (three minutes), and the figure; or one run of one of them:

python experiments/cluster/speed.py [--figure docs/figures/fleet_speed.svg]
python experiments/cluster/speed.py --replicas 64 --requests 1000000 --router least_outstanding
python experiments/cluster/speed.py --replicas 64 --requests 10000000 --router consistent_hash --processes 2
"""

import argparse
import json
import resource
import time
from pathlib import Path

import matplotlib
import numpy as np

from simkit.cluster.fleet import named_router, serve_fleet
from simkit.cluster.live import Rules, serve_live
from simkit.cluster.roster import Member
from simkit.cluster.routers import Router
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.workloads.streams import streams
from simkit.workloads.workload import Workload

matplotlib.use("svg")
import matplotlib.pyplot as plt

REPLICAS = (4, 16, 64, 256)
REQUESTS_A_REPLICA = 1500
RATE_PER_S = 8.0  # for each replica
REPEATS = 5
LINES = {
    "round_robin": "round_robin (dealt)",
    "power_of_two": "power_of_two (compiled)",
    "least_outstanding": "least_outstanding (compiled)",
    "on the clock": "power_of_two (SimPy)",
}


def workload_of(requests: int, replicas: int) -> Workload:
    """Poisson arrivals, 50 to 2,000 tokens in, 20 to 400 out."""
    rng = np.random.default_rng(0)
    return Workload(
        name="mixed",
        arrival_us=np.cumsum(rng.exponential(1e6 / RATE_PER_S / replicas, requests)).astype(np.int64),
        prompt_tokens=rng.integers(50, 2000, requests).astype(np.int32),
        output_tokens=rng.integers(20, 400, requests).astype(np.int32),
    )


def measured(spec: ReplicaSpec, replicas: int, requests: int, router: str, processes: int = 1) -> dict[str, object]:
    """CPU and wall seconds of one run, children's included."""
    workload = workload_of(requests, replicas)
    cpu, wall = _cpu_s(), time.perf_counter()
    if router == "on the clock":
        name, chosen, _ = named_router("power_of_two", 0)
        assert isinstance(chosen, Router)
        fleet = serve_live(workload, [Member(spec)] * replicas, name, chosen, Rules(), streams(0, 2)[1])
    else:
        fleet = serve_fleet(workload, [spec] * replicas, router, 0, processes=processes)
    cpu_s, wall_s = _cpu_s() - cpu, time.perf_counter() - wall
    assert fleet.accounts.finished == requests
    return {
        "router": router,
        "replicas": replicas,
        "requests": requests,
        "processes": processes,
        "cpu_s": round(cpu_s, 2),
        "wall_s": round(wall_s, 2),
        "cpu_us_a_request": round(1e6 * cpu_s / requests, 1),
        "steps": sum(result.steps for result in fleet.replicas),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Cost a request against replicas."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for router, label in LINES.items():
        mine = [row for row in rows if row["router"] == router]
        axes.plot([row["replicas"] for row in mine], [row["cpu_us_a_request"] for row in mine], "o-", label=label)
    axes.set_xscale("log", base=4)
    axes.set_xticks(REPLICAS, [str(count) for count in REPLICAS])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("replicas")
    axes.set_ylabel("CPU µs a request")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    plt.rcParams["svg.hashsalt"] = "simkit"
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """One run, or all of them and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--router", default="least_outstanding")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/fleet_speed.svg"))
    given = parser.parse_args()
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    for router in LINES:
        measured(spec, 2, 100, router)  # compiles
    if given.replicas:
        print(json.dumps(measured(spec, given.replicas, given.requests, given.router, given.processes)))
        return
    rows = []
    for router in LINES:
        for replicas in REPLICAS:
            runs = [measured(spec, replicas, replicas * REQUESTS_A_REPLICA, router) for _ in range(REPEATS)]
            rows.append(sorted(runs, key=lambda run: float(str(run["cpu_us_a_request"])))[REPEATS // 2])
            print(json.dumps(rows[-1]), flush=True)
    draw(rows, given.figure)


if __name__ == "__main__":
    main()
