"""Whatever the `cluster:` section of a run says must be able to matter: what could not is refused, not passed over.

Of one run, whose fleet and workload are known. A search that tries fleets of many sizes does not ask this.
"""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from simkit.cluster.faults import Fault
from simkit.cluster.places import places_of
from simkit.cluster.scaling_rules import SloRule
from simkit.cluster.settings import Cluster
from simkit.errors import InputError, suggestion
from simkit.workloads.workload import Workload


def check_heeded(cluster: Cluster, workload: Workload) -> None:
    """Raise InputError, naming the key, for the first setting that could not make any difference."""
    _check_faults(cluster)
    _check_admission(cluster, workload)
    _check_sessions(cluster)
    _check_pools_of_router(cluster)
    for number, scaling in enumerate(cluster.autoscaling):
        rule = scaling.rule
        if isinstance(rule, SloRule) and rule.ttft_s is None and rule.tpot_s is None:
            raise InputError(f"cluster.autoscaling.{number}.rule: slo has no target; give ttft_s, tpot_s or both")
    if cluster.tiers and workload.prefixes is None:
        raise InputError(
            "cluster.tiers: the workload does not say what its prompts share (no hash_ids), so nothing could be found "
            "in a tier; leave them out, or give another workload"
        )


def _check_faults(cluster: Cluster) -> None:
    """Each fault of the schedule hits a replica that there is or, where a pool scales, may be."""
    there, template_of = places_of(cluster)
    scaled = {scaling.pool for scaling in cluster.autoscaling}
    nodes = {node for _, node in there} | {template_of[pool] for pool in scaled}
    moves = cluster.disaggregation is not None or bool(cluster.tiers)
    for fault in cluster.faults.all_scheduled():
        where = f"cluster.faults: {fault.kind} at {fault.at_s:g} s"
        if fault.kind == "link_down" and not moves:
            raise InputError(f"{where}: is of links that KV goes over; it needs disaggregation or tiers")
        if fault.pool is not None and fault.pool not in template_of:
            raise InputError(f"{where}: pool {fault.pool!r} is not there; {suggestion(fault.pool, template_of)}")
        if fault.node is not None and fault.node not in nodes:
            raise InputError(f"{where}: node {fault.node} is not there; give one of {_listed(nodes)}")
        if fault.replica is None or fault.replica < len(there):
            _check_hits(fault, where, there, scaled)
        elif not scaled:
            raise InputError(f"{where}: replica {fault.replica} is not there; give one from 0 to {len(there) - 1}")


def _check_hits(fault: Fault, where: str, there: list[tuple[str, int]], scaled: set[str]) -> None:
    """Pool, node and replica, each of which there is, go together."""
    if fault.replica is not None:
        pool, node = there[fault.replica]
        if fault.pool not in (None, pool) or fault.node not in (None, node):
            raise InputError(f"{where}: replica {fault.replica} is of pool {pool!r}, on node {node}; name it so")
    elif not scaled and not any(fault.pool in (None, pool) and fault.node in (None, node) for pool, node in there):
        raise InputError(f"{where}: nobody of pool {fault.pool!r} is on node {fault.node}; leave one of them out")


def _listed(nodes: set[int]) -> str:
    known = sorted(nodes)
    return ", ".join(map(str, known)) if len(known) <= 8 else f"{known[0]} to {known[-1]}"


def _check_admission(cluster: Cluster, workload: Workload) -> None:
    """Limits and orders at the door matter to somebody."""
    admission = cluster.admission
    told = _changed(admission, ("queue_limit", "order", "shed", "drop_late"))
    breaks = cluster.faults.random is not None or bool(cluster.faults.all_scheduled())
    waits = admission.replica_limit is not None or breaks or bool(cluster.autoscaling or cluster.disaggregation)
    if told and not waits:
        raise InputError(
            f"cluster.admission.{told[0]}: nobody waits at the door, as replicas take any number; set replica_limit"
        )
    if admission.shed and admission.queue_limit is None:
        raise InputError("cluster.admission.shed: a queue without a limit is never full; set queue_limit")
    if (admission.shed or admission.order == "priority") and (
        workload.priority is None or workload.priority.min(initial=0) == workload.priority.max(initial=0)
    ):
        key = "shed" if admission.shed else "order"
        raise InputError(f"cluster.admission.{key}: all requests of the workload have one priority; leave it out")
    if admission.drop_late and not any(
        value is not None for name in ("deadline_us", "ttft_slo_us") for value in workload.extra.get(name) or ()
    ):
        raise InputError(
            "cluster.admission.drop_late: no request of the workload has deadline_us or ttft_slo_us; leave it out"
        )


def _check_sessions(cluster: Cluster) -> None:
    told = _changed(cluster.sessions, ("users", "think_s", "longest_think_s", "after_failure"))
    if cluster.sessions.replay == "open" and told:
        raise InputError(f"cluster.sessions.{told[0]}: is of closed loops, and replay is open; set replay: closed")


def _changed(given: BaseModel, names: Sequence[str]) -> list[str]:
    """Those of some settings that are not what they are by default; a result's own configuration names them all."""
    return [name for name in names if getattr(given, name) != type(given).model_fields[name].default]


def _check_pools_of_router(cluster: Cluster) -> None:
    """A router by length names the pools that it can send to, and all of them."""
    router = cluster.router
    if not isinstance(router, Mapping) or router.get("kind") != "by_length":
        return
    given = router.get("most_tokens")
    if not isinstance(given, Mapping):
        return  # the router's own settings say what is wrong
    names = [str(name) for name in given]
    apart = cluster.disaggregation
    known = [pool.name for pool in cluster.all_pools() if apart is None or pool.name in apart.prefill]
    for name in names:
        if name not in known:
            raise InputError(f"cluster.router.most_tokens: pool {name!r} is not there; {suggestion(name, known)}")
    for name in known:
        if name not in names:
            raise InputError(f"cluster.router.most_tokens: pool {name!r} would get nothing; name it, or leave it out")
