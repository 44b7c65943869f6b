"""Small random clusters with everything that can go wrong in them, all drawn from a seed."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from simkit.cluster.settings import Cluster
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.models.layout import Layout
from simkit.models.steptables import constant_tables
from simkit.workloads.workload import Prefixes, Workload

ROUTER_NAMES = (
    "round_robin", "random", "least_outstanding", "least_tokens", "power_of_two", "least_reported", "sticky",
    "consistent_hash", "prefix_aware", "kv_overlap", "weighted", "data_parallel",
)  # fmt: skip


@cache
def small_spec(blocks: int, running: int, caching: bool, asynchronous: bool) -> ReplicaSpec:
    """A server of 128 tokens' context and steps of 1 ms and more, cheap to make a thousand times."""
    engine = EngineSettings(
        max_num_seqs=running,
        max_model_len=128,
        max_num_batched_tokens=48,
        block_size=4,
        num_gpu_blocks_override=blocks,
        enable_prefix_caching=caching,
        async_scheduling=asynchronous,
    )
    spec = _resolved()
    limits = engine.limits(blocks, 128, 48, running)
    tables = constant_tables(48, running, token_ns=20_000, request_ns=10_000, step_ns=1_000_000)
    deployment = spec.deployment.model_copy(update={"engine": engine})
    return replace(spec, deployment=deployment, limits=limits, num_blocks=blocks, tables=tables)


@cache
def _resolved() -> ReplicaSpec:
    return resolve(Deployment(model="llama-3.1-8b", device="h100"))


def random_workload(rng: np.random.Generator) -> Workload:
    """Up to 60 requests, some in sessions, some sharing prefixes, one in twenty too long for any context."""
    n = int(rng.integers(1, 60))
    prompt = rng.integers(1, 80, n)
    output = rng.integers(1, 30, n)
    prompt = np.where(rng.random(n) < 0.05, 120, prompt)
    arrival_us = np.sort(rng.integers(0, int(rng.choice([1, 50_000, 500_000])) * 10, n))
    session = rng.integers(0, max(1, n // 4), n)
    group = rng.integers(0, 3, n)
    named = np.where(rng.random(n) < 0.6, prompt // 4, 0)
    ids = [int(group[i]) * 100 + k for i in range(n) for k in range(named[i])]
    return Workload(
        name="random",
        arrival_us=arrival_us.astype(np.int64),
        prompt_tokens=prompt.astype(np.int32),
        output_tokens=output.astype(np.int32),
        priority=rng.integers(0, 3, n).astype(np.int32) if rng.random() < 0.5 else None,
        session_id=tuple(f"s{i}" for i in session.tolist()),
        prefixes=Prefixes(4, np.concatenate(([0], np.cumsum(named))).astype(np.int64), np.array(ids, np.int64)),
        extra={
            "think_us": tuple(int(v) for v in rng.integers(0, 200_000, n)),
            "deadline_us": tuple(int(v) if v < 400_000 else None for v in rng.integers(1_000, 800_000, n)),
        },
    )


def random_cluster(seed: int) -> tuple[Workload, Cluster, ReplicaSpec]:
    """A workload, a cluster with random faults, clients and limits, and what its replicas are."""
    rng = np.random.default_rng(seed)

    def maybe(value: object, share: float = 0.5) -> object:
        return value if rng.random() < share else None

    replicas = int(rng.integers(1, 5))
    workload = random_workload(rng)
    spec = small_spec(
        int(rng.choice([33, 40, 200])), int(rng.choice([1, 3, 8])), bool(rng.random() < 0.6), bool(rng.random() < 0.6)
    )
    faults = [
        {
            "at_s": float(rng.random()),
            "kind": str(rng.choice(["crash", "slow", "cut_off", "update", "node_down"])),
            "replica": maybe(int(rng.integers(0, replicas)), 0.7),
            "node": int(rng.integers(0, 2)),
            "for_s": float(rng.choice([0.0, 0.01, 0.3])),
            "factor": float(rng.choice([0.5, 1.5, 5.0])),
        }
        for _ in range(int(rng.integers(0, 6)))
    ]
    for fault in faults:
        if fault["kind"] != "node_down":
            fault.pop("node")
        else:
            fault.pop("replica")
        if fault["kind"] != "slow":
            fault.pop("factor")
    scaling = {
        "least": int(rng.integers(0, 2)),
        "most": int(rng.integers(1, 5)),
        "interval_s": 0.05,
        "down_stabilization_s": 0.1,
        "warm": int(rng.integers(0, 2)),
        "warm_ready_s": 0.01,
        "rule": [
            {"kind": "queue", "target": 4},
            {"kind": "utilisation"},
            {"kind": "slo", "ttft_s": 0.05, "tpot_s": 0.01},
        ][int(rng.integers(0, 3))],
    }
    retries = {
        "most": int(rng.integers(0, 4)),
        "first_pause_s": float(rng.choice([0.0, 0.05])),
        "longest_pause_s": 0.2,
        "on": [["rejected", "timed_out", "failed"], ["rejected"], ["failed", "timed_out"]][int(rng.integers(0, 3))],
    }
    return (
        workload,
        Cluster.model_validate(
            {
                "pools": [{"replicas": replicas, "per_node": 2}],
                "router": str(rng.choice(ROUTER_NAMES)),
                "admission": {
                    "replica_limit": maybe(int(rng.integers(1, 6))),
                    "queue_limit": maybe(int(rng.integers(0, 8))),
                    "order": str(rng.choice(["fcfs", "priority"])),
                    "shed": bool(rng.random() < 0.5),
                    "drop_late": bool(rng.random() < 0.3),
                },
                "clients": {
                    "timeout_s": maybe(float(rng.choice([0.05, 0.3, 2.0]))),
                    "first_token_timeout_s": maybe(float(rng.choice([0.02, 0.2])), 0.3),
                    "cancel_share": float(rng.choice([0.0, 0.2])),
                    "cancel_after_s": 0.1,
                    "retries": retries,
                },
                "lost_jobs": {"policy": str(rng.choice(["fail", "retry", "resume"])), "most": int(rng.integers(0, 4))},
                "sessions": {
                    "replay": str(rng.choice(["open", "closed"])),
                    "users": maybe(int(rng.integers(1, 5))),
                    "after_failure": str(rng.choice(["stop", "go_on"])),
                },
                "faults": {
                    "schedule": faults,
                    "random": maybe(
                        {"mean_between_s": 0.5, "mean_for_s": 0.05, "crash": 1.0, "slow": 1.0, "cut_off": 1.0}, 0.5
                    ),
                },
                "startup": {"engine_s": 0.05, "load_gb_per_s": 1000.0},
                "autoscaling": [scaling] if rng.random() < 0.4 else [],
            }
        ),
        spec,
    )


def random_moving_cluster(seed: int) -> tuple[Workload, Cluster, ReplicaSpec]:
    """The same with KV on links: prefill and decode apart, tiers behind the replicas, or both."""
    rng = np.random.default_rng([seed, 1])
    workload, plain, spec = random_cluster(seed)
    spec = small_spec(
        spec.num_blocks, spec.limits.max_running, caching=True, asynchronous=bool(spec.limits.pipeline_depth > 1)
    )
    described = plain.model_dump(exclude_unset=True)
    apart, tiers = (rng.random(2) < (0.7, 0.5)).tolist()
    if apart or not tiers:
        described["disaggregation"] = {
            "prefill": ["p"],
            "decode": ["d"],
            "link": _link(rng),
            "shared_by": str(rng.choice(["sender", "receiver", "all"])),
            "layerwise": bool(rng.random() < 0.5),
            "local_below_tokens": int(rng.choice([0, 20])),
            "local_when_queued": [None, 0, 3][int(rng.integers(0, 3))],
        }
        _part_pools(rng, described)
        if rng.random() < 0.5:
            del described["router"]
    if tiers:
        described["tiers"] = [
            {
                "name": f"tier {level}",
                "capacity_gib": float(rng.choice([1e-3, 5e-3, 1.0])),
                "link": _link(rng),
                "shared": bool(rng.random() < 0.5),
                "write": str(rng.choice(["through", "on_evict"])),
            }
            for level in range(int(rng.integers(1, 4)))
        ]
    described["faults"]["schedule"] = [*described["faults"]["schedule"], *_link_faults(rng)]
    if described["faults"]["random"] is not None:
        described["faults"]["random"]["link_down"] = 1.0
    return workload, Cluster.model_validate(described), spec


def random_lockstep_cluster(seed: int) -> tuple[Workload, Cluster, ReplicaSpec, ReplicaSpec]:
    """One of both kinds, some of whose pools have engines that share experts.

    Returns what replicas are, too, and what these engines are: of pools that have a deployment of their own.
    """
    rng = np.random.default_rng([seed, 2])
    workload, plain, spec = random_cluster(seed) if seed % 2 else random_moving_cluster(seed)
    engines = int(rng.integers(2, 5))
    layout = Layout(data=engines, expert=engines)
    own = spec.deployment.model_copy(update={"layout": layout})
    tables = spec.tables
    if rng.random() < 0.7:
        tables = tables._replace(shared_linear_ns=0.6 * tables.linear_ns)
    if rng.random() < 0.5:
        tables = tables._replace(host_ns=np.full_like(tables.host_ns, 300_000.0))
    described = plain.model_dump(exclude_unset=True)
    shares = rng.random(len(described["pools"])) < 0.7
    shares[0] |= not shares.any()
    for pool, sharing in zip(described["pools"], shares.tolist(), strict=True):
        if sharing:
            pool.update(deployment=own, data_parallel=engines, replicas=min(2, pool["replicas"]), per_node=3)
    return workload, Cluster.model_validate(described), spec, replace(spec, deployment=own, tables=tables)


def _link(rng: np.random.Generator) -> dict[str, float]:
    """From 0.2 s a KV block to far less than a step."""
    return {"gb_per_s": float(rng.choice([0.0025, 0.01, 0.3, 10.0])), "achieved": 1.0}


def _part_pools(rng: np.random.Generator, described: dict[str, Any]) -> None:
    """A pool for prefill and one for decode, each scaled by a rule of its own or not at all."""
    rules = described.pop("autoscaling")
    rule = dict(rules[0]) if rules else None
    described["pools"] = []
    described["autoscaling"] = []
    for name in ("p", "d"):
        scaled = rule is not None and rng.random() < 0.7
        least = 0 if scaled and rng.random() < 0.3 else 1
        described["pools"].append({"name": name, "replicas": int(rng.integers(least, 4)), "per_node": 2})
        if scaled and rule is not None:
            described["autoscaling"].append({**rule, "pool": name})


def _link_faults(rng: np.random.Generator) -> list[dict[str, object]]:
    """Links that break, of a replica or of a pool."""
    return [
        {
            "at_s": float(rng.random()),
            "kind": "link_down",
            "replica": int(rng.integers(0, 4)) if rng.random() < 0.7 else None,
            "for_s": float(rng.choice([0.0, 0.02, 0.3])),
        }
        for _ in range(int(rng.integers(0, 3)))
    ]
