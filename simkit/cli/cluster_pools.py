"""What the pools of a cluster are made of: for the title of a run, and for its summary."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from simkit.cluster.settings import Cluster, Pool

if TYPE_CHECKING:
    from simkit.engine.deployment import ReplicaSpec


def are_alike(specs: "Mapping[str, ReplicaSpec]") -> bool:
    """Whether the replicas of all pools, by name, are of one deployment."""
    first, *others = specs.values()
    return all(other.deployment == first.deployment for other in others)


def stands_for_all(specs: "Mapping[str, ReplicaSpec]") -> "ReplicaSpec":
    """The replica that a summary speaks of: of unlike pools, the first one's, with where each pool's times come from.

    How well the steps' times are known is then not said: each pool's are known from another profile.
    """
    first = next(iter(specs.values()))
    if are_alike(specs):
        return first
    if len({(spec.provenance, spec.provenance_note) for spec in specs.values()}) == 1:
        return replace(first, known=None)
    words = list(dict.fromkeys(spec.provenance for spec in specs.values()))
    provenance = "uncalibrated" if "uncalibrated" in words else ", ".join(words)
    notes = "; ".join(f"pool {name}: {spec.provenance}, {spec.provenance_note}" for name, spec in specs.items())
    return replace(first, provenance=provenance, provenance_note=notes, known=None)


def fleet_title(cluster: Cluster, specs: "Mapping[str, ReplicaSpec]") -> str:
    """`2 x llama-3.1-8b on h100-sxm (prefill), 1 to 4 x llama-3.1-8b on h100-sxm (decode)`."""
    pools = cluster.all_pools()
    titles = [
        f"{_number(cluster, pool)} x {specs[pool.name].architecture.name} on {specs[pool.name].device.name}"
        + (f" ({pool.name})" if len(pools) > 1 else "")
        for pool in pools
    ]
    return ", ".join(titles)


def pool_rows(cluster: Cluster, specs: "Mapping[str, ReplicaSpec]") -> list[dict[str, object]]:
    """A row for each pool: what its replicas are, what one can hold, and where its step times come from."""
    return [
        {
            "pool": pool.name,
            "replicas": _number(cluster, pool),
            "model": spec.architecture.name,
            "device": spec.device.name,
            "gpus": spec.deployment.layout.gpus,
            "kv_tokens": spec.kv_tokens - spec.limits.block_size,
            "step_time": {"provenance": spec.provenance, "note": spec.provenance_note},
            "memory_bytes": dict(spec.memory.rows()),
            "engine": spec.limits._asdict(),
        }
        for pool, spec in ((pool, specs[pool.name]) for pool in cluster.all_pools())
    ]


def _number(cluster: Cluster, pool: Pool) -> str:
    """How many there are, or may be."""
    for scaling in cluster.autoscaling:
        if scaling.pool == pool.name:
            return f"{scaling.least} to {scaling.most}"
    return str(pool.replicas * pool.data_parallel)
