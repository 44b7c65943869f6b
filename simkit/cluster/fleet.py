"""A fleet serves a workload: requests arrive, a router sends each to a replica, replicas run as far as routing needs.

Arrivals are a SimPy process on a clock of whole nanoseconds. Routing that does not look at the load needs no clock:
each replica gets its whole share and serves it in one call.
"""

from collections.abc import Callable, Generator, Sequence

import numpy as np
import simpy

from simkit.cluster.lazy_replica import LazyReplica, Offers
from simkit.cluster.result import FleetResult, fleet_result
from simkit.cluster.routers import BlindRouter, Router, new_router
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.state import I64
from simkit.errors import InputError
from simkit.workloads.streams import stream
from simkit.workloads.workload import Workload

ARRIVALS_A_REPORT = 4096  # requests routed between two calls of `on_progress`


class Fleet:
    """The replicas, as a router sees them at the present moment."""

    def __init__(self, clock: simpy.Environment, replicas: Sequence[LazyReplica]) -> None:
        self._clock = clock
        self._replicas = replicas

    def __len__(self) -> int:
        return len(self._replicas)

    def outstanding(self, replica: int) -> int:
        """Requests sent to a replica and not answered yet."""
        return self._replicas[replica].outstanding(int(self._clock.now))


def serve_fleet(
    workload: Workload,
    specs: Sequence[ReplicaSpec],
    router: str | Router | BlindRouter,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> FleetResult:
    """Serve `workload` on one replica for each of `specs`, which may differ.

    `router` is a name from `simkit.cluster.routers.ROUTERS` or an object of one's own; `seed` feeds the named ones that
    draw. `on_progress` is told now and then how many requests were sent on. A KeyboardInterrupt in the middle ends the
    run: the result holds what was done and says that it is not complete. Raises InputError for no replicas, an unknown
    router, or a router that names a replica that is not there.
    """
    if not specs:
        raise InputError("fleet: replicas=0; a fleet needs at least one")
    name = router if isinstance(router, str) else type(router).__name__
    chosen = new_router(router, stream(seed)) if isinstance(router, str) else router
    offers = Offers(workload)
    blind = isinstance(chosen, BlindRouter)
    room = 0 if blind else len(workload) // len(specs)
    replicas = [LazyReplica(spec, offers, room) for spec in specs]
    complete = True
    try:
        if isinstance(chosen, BlindRouter):
            _deal(workload, replicas, name, chosen, on_progress)
        else:
            _route(workload, replicas, name, chosen, on_progress)
    except KeyboardInterrupt:
        complete = False
    return fleet_result(name, workload, [replica.result(complete) for replica in replicas])


def _deal(
    workload: Workload,
    replicas: Sequence[LazyReplica],
    name: str,
    router: BlindRouter,
    on_progress: Callable[[int], None] | None,
) -> None:
    """Give each replica its whole share, and let it serve that in one call."""
    share = np.asarray(router.shares(workload, len(replicas)))
    if share.shape != (len(workload),):
        raise InputError(
            f"router {name}: shares of shape {share.shape} for {len(workload)} requests; one each is wanted"
        )
    wrong = np.flatnonzero((share < 0) | (share >= len(replicas)))
    if len(wrong):
        raise _no_such_replica(name, int(wrong[0]), int(share[wrong[0]]), len(replicas))
    sent = 0
    for i, replica in enumerate(replicas):
        rows = np.flatnonzero(share == i)
        replica.give(rows)
        replica.finish()
        sent += len(rows)
        if on_progress is not None:
            on_progress(sent)


def _route(
    workload: Workload,
    replicas: Sequence[LazyReplica],
    name: str,
    router: Router,
    on_progress: Callable[[int], None] | None,
) -> None:
    """Let requests arrive one by one, each going where the router sees fit at that moment."""
    clock = simpy.Environment(initial_time=0)
    clock.process(_arrivals(clock, workload, replicas, name, router, on_progress))
    clock.run()
    for replica in replicas:
        replica.finish()


def _arrivals(
    clock: simpy.Environment,
    workload: Workload,
    replicas: Sequence[LazyReplica],
    name: str,
    router: Router,
    on_progress: Callable[[int], None] | None,
) -> Generator[simpy.Event, None, None]:
    fleet = Fleet(clock, replicas)
    arrival_ns: I64 = workload.arrival_us * 1000
    for request in range(len(workload)):
        wait_ns = int(arrival_ns[request]) - clock.now
        if wait_ns > 0:
            yield clock.timeout(wait_ns)
        replica = router.choose(request, fleet)
        if not 0 <= replica < len(replicas):
            raise _no_such_replica(name, request, replica, len(replicas))
        replicas[replica].give_one(request)
        if on_progress is not None and request % ARRIVALS_A_REPORT == 0:
            on_progress(request)


def _no_such_replica(name: str, request: int, replica: int, replicas: int) -> InputError:
    return InputError(f"router {name}: sent request {request} to replica {replica}; there are 0 to {replicas - 1}")
