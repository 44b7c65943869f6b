"""A fleet under a router that does not look at the load: each replica serves its whole share by itself.

Shares are independent, so they are served in as many processes as asked; the result is the same for any number.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from simkit.cluster.forked import CAN_FORK, in_processes
from simkit.cluster.offers import Offered, Offers, event_capacity
from simkit.cluster.plug_in import OwnCode
from simkit.cluster.result import FleetResult, plain_fleet, rows_of_each
from simkit.cluster.routers import BlindRouter
from simkit.cluster.way import no_such_replica
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.discipline import engine, minds_blocks
from simkit.engine.loop import IDLE
from simkit.engine.replica import new_replica
from simkit.engine.simulate import ITERATIONS_A_CALL, result_of
from simkit.engine.state import ABORT, I64, NEVER, records
from simkit.errors import InputError
from simkit.metrics.result import RunResult
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

Progress = Callable[[int], None]


def serve_dealt(
    workload: Workload,
    specs: Sequence[ReplicaSpec],
    name: str,
    router: BlindRouter,
    on_progress: Progress | None,
    processes: int,
) -> FleetResult:
    """Give each replica its share, in `processes` processes where the system can fork them."""
    share = shares_of(router, name, workload, len(specs))
    parts, complete = _served(workload, specs, rows_of_each(share, len(specs)), on_progress, processes)
    return plain_fleet(name, workload, parts, specs, complete)


def shares_of(router: BlindRouter, name: str, workload: Workload, replicas: int) -> I64:
    """[n] the replica of each request; InputError for a router, called `name`, that fails or names none of them."""
    with OwnCode(f"router {name}"):
        share = np.asarray(router.shares(workload, replicas))
    if share.shape != (len(workload),) or (share.dtype.kind not in "iu" and len(share)):
        raise InputError(
            f"router {name}: shares of shape {share.shape} and type {share.dtype} for {len(workload)} requests; a "
            "whole number each is wanted"
        )
    wrong = np.flatnonzero((share < 0) | (share >= replicas))
    if len(wrong):
        raise no_such_replica(name, int(wrong[0]), int(share[wrong[0]]), replicas)
    return share.astype(np.int64)


def _served(
    workload: Workload,
    specs: Sequence[ReplicaSpec],
    rows: list[I64],
    on_progress: Progress | None,
    processes: int,
) -> tuple[list[tuple[I64, RunResult]], bool]:
    """Each replica's rows and result, and whether all of them were served."""
    offers = Offers(workload).all(specs)
    found: dict[int, RunResult] = {}
    serve = in_processes if processes > 1 and len(specs) > 1 and CAN_FORK else in_turn
    try:
        for i, result in serve(partial(_share, workload, specs, offers, rows), rows, processes):
            found[i] = result
            if on_progress is not None:
                on_progress(sum(len(rows[j]) for j in found))
            if not result.complete:
                break
    except KeyboardInterrupt:
        pass
    complete = len(found) == len(specs) and all(result.complete for result in found.values())
    parts = []
    for i in range(len(specs)):
        mine = rows[i] if i in found else rows[i][:0]
        parts.append((mine, found[i] if i in found else _share(workload, specs, offers, [mine] * len(specs), i)))
    return parts, complete


def _share(
    workload: Workload, specs: Sequence[ReplicaSpec], offers: Sequence[Offered], rows: Sequence[I64], i: int
) -> RunResult:
    """Replica i serves its share; interrupted, it says that it is not complete."""
    offer, spec = offers[i], specs[i]
    accepted = np.flatnonzero(offer.fits[rows[i]])
    replica = new_replica(
        offer.limits,
        offer.requests[rows[i][accepted]].view(np.recarray),
        offer.content_ids,
        records(0, ABORT),
        spec.num_blocks,
        event_capacity(len(specs)),
        named=minds_blocks(spec.deployment.engine.discipline, offer.content_ids),
    )
    advance = engine(spec.deployment.engine.discipline).advance
    complete = True
    try:
        while advance(replica, spec.tables, NEVER, ITERATIONS_A_CALL) != IDLE:
            pass
    except KeyboardInterrupt:
        complete = False
    return result_of(replica, selected(workload, rows[i]), accepted, complete)


def in_turn(share: Callable[[int], RunResult], rows: Sequence[I64], processes: int) -> Iterator[tuple[int, RunResult]]:
    """One replica after the other, in this process."""
    for i in range(len(rows)):
        yield i, share(i)
