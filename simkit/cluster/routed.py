"""A fleet under a router that the compiled loop knows: no clock, one loop over all arrivals."""

from collections.abc import Callable, Sequence

import numpy as np

from simkit.cluster.loops.bound import fleet_loops
from simkit.cluster.loops.routed import FULL
from simkit.cluster.offers import Offered, Offers
from simkit.cluster.rack import Rack, new_rack, replica_of, roomier
from simkit.cluster.result import FleetResult, plain_fleet, rows_of_each
from simkit.cluster.routers import Rule
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.discipline import engine
from simkit.engine.loop import IDLE
from simkit.engine.simulate import ITERATIONS_A_CALL, result_of
from simkit.engine.state import I64, NEVER
from simkit.metrics.result import RunResult
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

REQUESTS_A_CALL = 4096  # between looks at Ctrl-C and the progress bar: some 100 ms
SPARE = 1.25  # room for requests over an equal share, before the arrays must grow


def serve_routed(
    workload: Workload,
    specs: Sequence[ReplicaSpec],
    name: str,
    rule: Rule,
    rng: np.random.Generator,
    on_progress: Callable[[int], None] | None,
) -> FleetResult:
    """Serve a workload by replicas of one discipline of ours. `rng` is the router's own stream."""
    offers = Offers(workload).all(specs)
    longest = int((workload.prompt_tokens.astype(np.int64) + workload.output_tokens).max(initial=1))
    rack = new_rack(specs, offers, int(len(workload) / len(specs) * SPARE) + 64, longest, moves_blocks=False)
    chosen = np.full(len(workload), -1, dtype=np.int32)
    route = fleet_loops(specs[0].deployment.engine.discipline).route
    draws = rng.random((len(workload), rule.draws))
    reported = np.zeros(len(specs) + 1, dtype=np.int64)
    reported[-1] = -1
    first = 0
    try:
        while first < len(workload):
            last = min(first + REQUESTS_A_CALL, len(workload))
            why, first = route(rack, first, last, rule.kind, rule.load, rule.age_ns, reported, draws, chosen)
            if why == FULL:
                rack = roomier(rack)
            if on_progress is not None:
                on_progress(first)
        finish(rack, specs, offers)
        complete = True
    except KeyboardInterrupt:
        complete = False
    rows = rows_of_each(chosen, len(specs))
    parts = [_part(workload, rack, i, offer, rows[i], complete) for i, offer in enumerate(offers)]
    return plain_fleet(name, workload, parts, specs, complete)


def finish(rack: Rack, specs: Sequence[ReplicaSpec], offers: Sequence[Offered]) -> None:
    """Serve what is left."""
    for i, (spec, offer) in enumerate(zip(specs, offers, strict=True)):
        replica = replica_of(rack, i, offer.limits)
        advance = engine(spec.deployment.engine.discipline).advance
        while advance(replica, spec.tables, NEVER, ITERATIONS_A_CALL) != IDLE:
            pass


def _part(workload: Workload, rack: Rack, i: int, offer: Offered, rows: I64, complete: bool) -> tuple[I64, RunResult]:
    """The rows of the workload that replica i was sent, and what became of them."""
    accepted = np.flatnonzero(offer.fits[rows])
    return rows, result_of(replica_of(rack, i, offer.limits), selected(workload, rows), accepted, complete)
