"""A fleet of engines that share experts: those of one replica take their steps together."""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from simkit.cluster.dealt import shares_of
from simkit.cluster.loops.lockstep import IDLE, deliver, run_together
from simkit.cluster.offers import Offered, Offers
from simkit.cluster.rack import Rack, new_rack, replica_of, roomier
from simkit.cluster.rack_view import RackView
from simkit.cluster.result import FleetResult, plain_fleet
from simkit.cluster.roster import Member
from simkit.cluster.routers import BlindRouter, Router
from simkit.cluster.routers.reported import Reader
from simkit.cluster.way import asked
from simkit.engine.simulate import ITERATIONS_A_CALL, result_of
from simkit.engine.state import I32, I64, NEVER, ROWS
from simkit.errors import InputError
from simkit.metrics.result import RunResult
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

SPARE = 1.25  # room for requests over an equal share, before the arrays must grow
REQUESTS_A_REPORT = 256  # between two calls of `on_progress`


def in_lockstep(members: Sequence[Member]) -> bool:
    """Whether some of a fleet's engines share experts."""
    return any(member.spec.deployment.layout.data > 1 for member in members)


def groups_of(members: Sequence[Member]) -> list[tuple[int, int]]:
    """(first, one past the last) of the engines of each replica; InputError where they are not as many as share."""
    groups = []
    first = 0
    for pool, mine in groupby(members, key=lambda member: member.pool):
        engines = list(mine)
        size = engines[0].spec.deployment.layout.data
        if len(engines) % size:
            raise InputError(
                f"cluster pool {pool}: {len(engines)} engines, and layout.data={size} of them share their experts; "
                f"set data_parallel: {size}"
            )
        groups += [(first + start, first + start + size) for start in range(0, len(engines), size)]
        first += len(engines)
    return groups


def serve_lockstep(
    workload: Workload,
    members: Sequence[Member],
    name: str,
    router: Router | BlindRouter,
    on_progress: Callable[[int], None] | None = None,
) -> FleetResult:
    """Serve a workload by engines of which those of a replica step together; InputError for what does not go with it.

    A router sends to engines. A KeyboardInterrupt ends the run: the result says so.
    """
    groups = groups_of(members)
    _check(members, name, router)
    specs = [member.spec for member in members]
    offers = Offers(workload).all(specs)
    longest = int((workload.prompt_tokens.astype(np.int64) + workload.output_tokens).max(initial=1))
    rack = new_rack(specs, offers, int(len(workload) / len(specs) * SPARE) + 64, longest, moves_blocks=False)
    chosen = np.full(len(workload), -1, dtype=np.int32)
    shares = None if isinstance(router, Router) else shares_of(router, name, workload, len(specs))
    view = RackView(workload, members, offers)
    complete = True
    try:
        for request, now in enumerate((workload.arrival_us * 1000).tolist()):
            _run(rack, groups, now)
            if int(rack.at[:, ROWS].max()) == rack.requests.shape[1]:
                rack = roomier(rack)
            if shares is None:
                assert isinstance(router, Router), "who has no shares"
                choice = asked(router, name, request, view.at(rack, now))
            else:
                choice = int(shares[request])
            chosen[request] = choice
            if offers[choice].fits[request]:
                deliver(rack, choice, request, now)
            if on_progress is not None and request % REQUESTS_A_REPORT == 0:
                on_progress(request)
        _run(rack, groups, NEVER)
    except KeyboardInterrupt:
        complete = False
    parts = [_part(workload, rack, i, offer, chosen, complete) for i, offer in enumerate(offers)]
    return plain_fleet(name, workload, parts, specs, complete)


def _run(rack: Rack, groups: Sequence[tuple[int, int]], until_ns: int) -> None:
    """Run all engines up to a time, or to their end."""
    for first, last in groups:
        planned = np.zeros((last - first, 2), dtype=np.int64)
        while until_ns == NEVER and run_together(rack, first, last, NEVER, ITERATIONS_A_CALL, planned) != IDLE:
            pass
        if until_ns != NEVER:
            run_together(rack, first, last, until_ns, NEVER, planned)


def _check(members: Sequence[Member], name: str, router: Router | BlindRouter) -> None:
    if isinstance(router, Reader):
        raise InputError(f"cluster.router={name}: not for engines that share experts (layout.data); use data_parallel")
    others = {member.spec.deployment.engine.discipline for member in members} - {"vllm-v1"}
    if others:
        raise InputError(
            f"deployment.engine.discipline={min(others)}: engines that share experts (layout.data) run vllm-v1 only"
        )


def _part(workload: Workload, rack: Rack, i: int, offer: Offered, chosen: I32, complete: bool) -> tuple[I64, RunResult]:
    """The rows of the workload that engine i was sent, and what became of them."""
    rows = np.flatnonzero(chosen == i)
    accepted = np.flatnonzero(offer.fits[rows])
    return rows, result_of(replica_of(rack, i, offer.limits), selected(workload, rows), accepted, complete)
