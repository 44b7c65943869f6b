"""A cluster serves a workload: from what a user described to a result."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from simkit.cluster.apart import is_plain, serve_apart
from simkit.cluster.autoscaling import autoscaling_process
from simkit.cluster.faults import fault_process
from simkit.cluster.fleet import compiled_rule, named_router, serve_fleet
from simkit.cluster.live import House, Rules, serve_live
from simkit.cluster.moving import Moving
from simkit.cluster.places import places_of
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.routers import BlindRouter, Router
from simkit.cluster.sessions import session_arrivals
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import Deployment, ReplicaSpec, with_whole_contexts
from simkit.errors import InputError
from simkit.workloads.streams import streams
from simkit.workloads.workload import Workload

Resolve = Callable[[Deployment | None], ReplicaSpec]
"""A pool's deployment worked out; None stands for the configuration's."""


def serve_cluster(
    workload: Workload,
    cluster: Cluster,
    resolve: Resolve,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> FleetResult:
    """Serve `workload` as `cluster` says; everything random comes from `seed`, a stream for each purpose.

    Raises InputError for whatever in it cannot be. A KeyboardInterrupt ends the run: the result says so.
    """
    members, templates = members_of(cluster, resolve)
    moving = Moving(cluster.disaggregation, cluster.tiers)
    name, chosen, _ = named_router(cluster.chosen_router, seed)
    specs = [member.spec for member in members]
    together = any(member.engines > 1 for member in templates.values())
    on_the_clock = together or cluster.on_the_clock or bool(moving)
    if cluster.processes > 1 and (on_the_clock or not isinstance(chosen, BlindRouter)):
        raise InputError(
            f"cluster.processes={cluster.processes}: only what is dealt out beforehand runs in several, by a router "
            "that looks at nothing (round_robin, random, consistent_hash, sticky) and with nothing else going on; "
            "leave it out"
        )
    if not on_the_clock and (isinstance(chosen, BlindRouter) or compiled_rule(chosen, specs) is not None):
        return _of_pools(
            serve_fleet(workload, specs, cluster.chosen_router, seed, on_progress, cluster.processes), members
        )
    if not isinstance(chosen, Router):
        raise InputError(f"router {name}: has no choose(request, fleet), which a cluster with processes needs; add it")
    # prefill replicas have a router if one is asked for
    by_load = moving.apart is not None and cluster.router is None
    nothing_else = by_load and not (cluster.on_the_clock or moving.tiers)
    if nothing_else and moving.apart is not None and is_plain(moving.apart, members):
        return serve_apart(workload, members, moving.apart, on_progress)
    _, client_stream, fault_stream = streams(seed, 3)
    processes: list[Callable[[House], None]] = [fault_process(cluster.faults, cluster.startup, fault_stream)]
    for scaling in cluster.autoscaling:
        processes.append(autoscaling_process(scaling, templates[scaling.pool], cluster.startup))
    rules = Rules(cluster.admission, cluster.clients, cluster.lost_jobs)
    arrivals = session_arrivals(cluster.sessions, workload)
    return serve_live(
        workload,
        members,
        "disaggregated" if by_load else name,
        None if by_load else chosen,
        rules,
        client_stream,
        processes,
        arrivals,
        on_progress,
        list(templates.values()),
        moving,
    )


def _of_pools(fleet: FleetResult, members: Sequence[Member]) -> FleetResult:
    """The fleet, whose replicas are told which pool they belong to."""
    lives = tuple(replace(life, pool=member.pool) for life, member in zip(fleet.lives, members, strict=True))
    return replace(fleet, lives=lives)


def members_of(cluster: Cluster, resolve: Resolve) -> tuple[list[Member], dict[str, Member]]:
    """The replicas that are there from the start, and for each pool what another one of it would be."""
    specs = {pool.name: resolve(pool.deployment) for pool in cluster.all_pools()}
    if Moving(cluster.disaggregation, cluster.tiers):
        specs = {name: with_whole_contexts(spec, resolve) for name, spec in specs.items()}
    there, added = places_of(cluster)
    members = [Member(specs[pool], pool, node) for pool, node in there]
    return members, {pool: Member(specs[pool], pool, node) for pool, node in added.items()}


def replicas_over_time(fleet: FleetResult) -> tuple["np.ndarray[tuple[int, ...], np.dtype[np.int64]]", ...]:
    """(times in ns, replicas that serve from then on, replicas paid for from then on), steps in order of time."""
    changes: dict[int, tuple[int, int]] = {}

    def change(at_ns: int, serving: int, paid: int) -> None:
        before = changes.get(at_ns, (0, 0))
        changes[at_ns] = (before[0] + serving, before[1] + paid)

    for life in fleet.lives:
        end_ns = fleet.end_ns if life.ended_ns is None else life.ended_ns
        change(life.asked_ns, 0, 1)
        change(end_ns, 0, -1)
        if life.ready_ns is not None:
            change(life.ready_ns, 1, 0)
            change(end_ns, -1, 0)
    times = np.array(sorted(changes), dtype=np.int64)
    steps = np.array([changes[at_ns] for at_ns in times.tolist()], dtype=np.int64).reshape(-1, 2)
    return times, np.cumsum(steps[:, 0]), np.cumsum(steps[:, 1])
