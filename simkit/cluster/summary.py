"""What a summary says of a fleet beside what it says of any run."""

from dataclasses import asdict

import numpy as np

from simkit.cluster.result import FleetResult, LifeSpan
from simkit.cluster.serve import replicas_over_time
from simkit.metrics.result import RunResult, Status
from simkit.metrics.summary import Tree, statistics

HOUR_NS = 3600 * 10**9
MOST_LISTED = 256  # lives, in the summary; totals are over all
MOST_CHANGES = 10_000  # of the number of replicas, in the summary


def fleet_summary(fleet: FleetResult) -> Tree:
    """Router, accounts, GPU-hours, time outside the replicas, and a row for each life of a replica."""
    present = [_present_ns(life, fleet.end_ns) for life in fleet.lives]
    finished = fleet.requests.status == Status.FINISHED
    sent = np.bincount(fleet.replica_of[fleet.replica_of >= 0], minlength=len(fleet.lives))
    return {
        "router": fleet.router,
        "accounts": asdict(fleet.accounts),
        "gpu_hours": fleet.gpu_ns() / HOUR_NS,
        "replicas_mean": sum(present) / fleet.end_ns if fleet.end_ns else 0.0,
        "replicas_over_time": _over_time(fleet),
        "lives": len(fleet.lives),
        "outside_s": statistics(fleet.outside_ns[finished] / 1e9),
        "handover": None if fleet.handover is None else asdict(fleet.handover),
        "tiers": [asdict(tier) for tier in fleet.tiers],
        "most_over_mean_requests": float(sent.max() / sent.mean()) if sent.sum() else None,
        "replicas": [
            _row(life, result, present_ns)
            for life, result, present_ns in list(zip(fleet.lives, fleet.replicas, present, strict=True))[:MOST_LISTED]
        ],
    }


def _over_time(fleet: FleetResult) -> Tree | None:
    """How many serve and are paid for from each time on; None if that never changes, or too often to list."""
    times, serving, paid = replicas_over_time(fleet)
    changing = times[times < fleet.end_ns]  # at the end all are gone
    if len(changing) < 2 or len(changing) > MOST_CHANGES:
        return None
    part = slice(0, len(changing))
    return {"at_s": (changing / 1e9).tolist(), "serving": serving[part].tolist(), "paid_for": paid[part].tolist()}


def _row(life: LifeSpan, result: RunResult, present_ns: int) -> Tree:
    """One life of a replica."""
    requests = result.requests
    done = requests.status == Status.FINISHED
    prompts = int(requests.prompt_tokens[done].sum())
    return {
        "replica": life.number,
        "pool": life.pool,
        "gpus": life.gpus,
        "ready_s": None if life.ready_ns is None else life.ready_ns / 1e9,
        "ended_s": None if life.ended_ns is None else life.ended_ns / 1e9,
        "requests": len(requests),
        "finished": int(np.count_nonzero(done)),
        "busy_fraction": min(1.0, result.busy_ns / present_ns) if present_ns else 0.0,
        "hit_rate": int(requests.hit_tokens[done].sum()) / prompts if prompts else 0.0,
        "ttft_s": statistics((requests.first_token_ns - requests.arrival_ns)[done] / 1e9)["p50"],
    }


def _present_ns(life: LifeSpan, end_ns: int) -> int:
    """How long it could serve."""
    if life.ready_ns is None:
        return 0
    return (end_ns if life.ended_ns is None else life.ended_ns) - life.ready_ns
