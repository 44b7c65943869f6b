"""Is autoscaling worth it over a day? Fixed fleets against scaled ones on the arrival rates of a real service.

    python experiments/cluster/diurnal.py FOLDER [--rate 4] [--out experiments/cluster/results]

FOLDER holds servegen/reason_deepseek-r1.tar.zst (GitHub: alibaba/ServeGen @ f891d11, data/reason/deepseek-r1,
Apache-2.0): the rates of 73 clients in windows of ten minutes. Lengths are those of the bundled preset azure-conv-2023.
"""

import argparse
import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import zstandard

from simkit.cluster.result import FleetResult
from simkit.cluster.serve import replicas_over_time, serve_cluster
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.metrics.result import Status
from simkit.workloads.presets import preset
from simkit.workloads.workload import Workload

matplotlib.use("svg")
import matplotlib.pyplot as plt

DAY_S = 86_400
WINDOW_S = 600
TTFT_S, TPOT_S = 1.0, 0.06
STARTUP = {"provision_s": 120, "engine_s": 60, "load_gb_per_s": 2.0}
SCALED = {"least": 1, "most": 16, "interval_s": 15}
F64 = np.ndarray


def rates_per_s(archive: Path) -> F64:
    """[144] requests a second of all clients together in each ten minutes of the day."""
    total = np.zeros(DAY_S // WINDOW_S)
    with archive.open("rb") as file:
        packed = zstandard.ZstdDecompressor(max_window_size=1 << 28).stream_reader(file)
        with tarfile.open(fileobj=packed, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.name.endswith("-trace.csv") else None
                if content is not None:
                    for row in csv.reader(io.StringIO(content.read().decode())):
                        total[int(float(row[0])) // WINDOW_S % len(total)] += float(row[1])
    return total


def day(rates: F64, mean_per_s: float, seed: int) -> Workload:
    """Poisson arrivals whose rate follows `rates`, scaled to a mean."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rates / rates.mean() * mean_per_s * WINDOW_S)
    start = np.repeat(np.arange(len(rates)) * WINDOW_S, counts)
    arrival_us = np.sort(((start + rng.random(len(start)) * WINDOW_S) * 1e6).astype(np.int64))
    lengths = preset("azure-conv-2023", requests=len(arrival_us), seed=seed, arrivals="poisson")
    return replace(lengths, name="a day at ServeGen's rates", arrival_us=arrival_us)


def fleets() -> dict[str, dict[str, object]]:
    """What is compared."""
    queue = {"kind": "queue", "target": 24}
    slo = {"kind": "slo", "ttft_s": TTFT_S, "tpot_s": TPOT_S, "attainment": 0.98, "comfortable": 0.999}
    fixed = {f"fixed {n}": {"replicas": n} for n in (2, 3, 4, 5)}
    return {
        **fixed,
        "queue": {"replicas": 2, "startup": STARTUP, "autoscaling": [{**SCALED, "rule": queue}]},
        "queue, 1 warm": {"replicas": 2, "startup": STARTUP, "autoscaling": [{**SCALED, "rule": queue, "warm": 1}]},
        "slo": {"replicas": 2, "startup": STARTUP, "autoscaling": [{**SCALED, "rule": slo}]},
    }


def met(fleet: FleetResult) -> F64:
    """[n] whether each request met both targets."""
    r = fleet.requests
    tpot_s = (r.finish_ns - r.first_token_ns) / 1e9 / np.maximum(r.generated_tokens - 1, 1)
    good = ((r.first_token_ns - r.arrival_ns) / 1e9 <= TTFT_S) & (tpot_s <= TPOT_S)
    return good & (r.status == Status.FINISHED)


def run(
    name: str, cluster: dict[str, object], workload: Workload, spec: ReplicaSpec
) -> tuple[dict[str, object], FleetResult]:
    """One fleet through the day: its figures."""
    whole = Cluster.model_validate({"router": "least_outstanding", **cluster})
    fleet = serve_cluster(workload, whole, lambda _: spec, 0)
    good = met(fleet)
    hour = (workload.arrival_us // 3_600_000_000).astype(int)
    worst = min(float(good[hour == h].mean()) for h in range(24))
    ttft = (fleet.requests.first_token_ns - fleet.requests.arrival_ns) / 1e9
    row = {
        "fleet": name,
        "requests": len(workload),
        "attainment": round(float(good.mean()), 4),
        "worst_hour": round(worst, 4),
        "ttft_p99_s": round(float(np.quantile(ttft, 0.99)), 3),
        "gpu_hours": round(fleet.gpu_ns() / 3.6e12, 2),
        "most_replicas": int(replicas_over_time(fleet)[2].max()),
    }
    return row, fleet


def draw(rates: F64, mean: float, shown: dict[str, tuple[dict[str, object], FleetResult]], path: Path) -> None:
    """Rate, replicas over the day, and attainment against GPU-hours."""
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(8, 8.4), layout="constrained")
    hours = np.arange(len(rates)) * WINDOW_S / 3600
    top.step(hours, rates / rates.mean() * mean, where="post", color="black", linewidth=1)
    top.set_ylabel("requests / s")
    top.set_xlim(0, 24)
    for name, (_, fleet) in shown.items():
        times, serving, _ = replicas_over_time(fleet)
        if not name.startswith("fixed"):
            middle.step(times / 3.6e12, serving, where="post", linewidth=1, label=name)
    middle.set_ylabel("replicas serving")
    middle.set_xlabel("hour of the day")
    middle.set_xlim(0, 24)
    middle.legend(frameon=False, ncols=3)
    for name, (row, _) in shown.items():
        fixed = name.startswith("fixed")
        bottom.plot(row["gpu_hours"], row["attainment"], "ks" if fixed else "o", markersize=6)
        bottom.annotate(name, (row["gpu_hours"], row["attainment"]), xytext=(6, -3), textcoords="offset points")
    bottom.set_xlabel("GPU-hours")
    bottom.set_ylabel(f"TTFT ≤ {TTFT_S:g} s and TPOT ≤ {1000 * TPOT_S:g} ms")
    bottom.margins(x=0.15, y=0.15)
    for axes in (top, middle, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    plt.rcParams["svg.hashsalt"] = "simkit"
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run all fleets, write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, default=4.0, help="mean requests a second")
    parser.add_argument("--out", type=Path, default=Path("experiments/cluster/results"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rates = rates_per_s(given.folder / "servegen/reason_deepseek-r1.tar.zst")
    workload = day(rates, given.rate, 0)
    spec = resolve(Deployment(model="llama-3.1-8b", device="l40s"))
    shown = {}
    for name, cluster in fleets().items():
        shown[name] = run(name, cluster, workload, spec)
        print(json.dumps(shown[name][0]), flush=True)
    with (given.out / "diurnal.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(shown["queue"][0]))
        writer.writeheader()
        writer.writerows(row for row, _ in shown.values())
    draw(rates, given.rate, shown, given.out / "diurnal.svg")


if __name__ == "__main__":
    main()
