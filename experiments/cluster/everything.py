"""Chats for `everything.yaml`: a cluster in which everything goes on at once, served here with one thing changed each.

python experiments/cluster/everything.py          # a minute of one core; writes the chats and prints the table
simkit run experiments/cluster/everything.yaml    # the same cluster with its report
"""

from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from simkit.cluster.result import FleetResult
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import Deployment, resolve
from simkit.metrics.result import Status
from simkit.workloads.chats import ChatSpec, chats
from simkit.workloads.lengths import LogNormalLength
from simkit.workloads.write import write_workload

HERE = Path(__file__).parent
TRACE = Path("chats.jsonl.gz")  # as everything.yaml names it
CHATS = ChatSpec(
    sessions=1500,
    sessions_per_s=3.0,
    turns_mean=4.0,
    think_s_mean=15.0,
    system_tokens=1024,
    question=LogNormalLength(median_tokens=1000, sigma=1.2, max_tokens=12_000),
    answer=LogNormalLength(median_tokens=200, sigma=0.8, max_tokens=2_000),
    context_limit=32_000,
)
CHANGES: dict[str, dict[str, object]] = {
    "as it stands": {},
    "nothing breaks": {"faults": {}},
    "retry": {"lost_jobs": {"policy": "retry"}},
    "no tiers": {"tiers": []},
    "no scaling": {"autoscaling": []},
}
HEAD = ("finished", "given up, failed", "retries", "resent", "taken up", "TTFT p50", "p99", "GPU-hours")


def main() -> None:
    """Write the chats, serve them, print a row for each change."""
    workload = chats(CHATS, seed=0)
    write_workload(workload, TRACE)
    described = yaml.safe_load((HERE / "everything.yaml").read_text(encoding="utf-8"))
    spec = resolve(Deployment.model_validate(described["deployment"]))
    table = Table("", *HEAD)
    for name, change in CHANGES.items():
        cluster = Cluster.model_validate({**described["cluster"], **change})
        table.add_row(name, *_row(serve_cluster(workload, cluster, lambda _: spec, 0)))
    Console(width=130).print(table)


def _row(fleet: FleetResult) -> list[str]:
    done = fleet.requests.status == Status.FINISHED
    ttft_s = (fleet.requests.first_token_ns - fleet.requests.arrival_ns)[done] / 1e9

    middle, late = np.quantile(ttft_s, [0.5, 0.99])
    accounts = fleet.accounts
    lost = accounts.rejected + accounts.timed_out + accounts.failed
    taken_up = 0 if fleet.handover is None else fleet.handover.taken_up
    numbers = [accounts.finished, lost, accounts.retries, accounts.resent, taken_up]
    return [*map(str, numbers), f"{middle:.2f} s", f"{late:.1f} s", f"{fleet.gpu_ns() / 3.6e12:.2f}"]


if __name__ == "__main__":
    main()
