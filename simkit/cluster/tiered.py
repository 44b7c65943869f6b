"""A fleet with KV tiers behind its device caches serves a workload."""

from collections.abc import Callable, Sequence

import simpy

from simkit.cluster.alarm import Alarm
from simkit.cluster.kv_flow import expected_of
from simkit.cluster.kv_result import kv_fleet
from simkit.cluster.kv_station import LandingStation, check_lands
from simkit.cluster.offers import Offers, event_capacity
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Life, Member, State
from simkit.cluster.routers import Router
from simkit.cluster.tier_flow import TierFlow
from simkit.cluster.tiers import Tier
from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.models.precision import parse_kv_precision
from simkit.workloads.workload import Workload

REQUESTS_A_REPORT = 256  # arrivals between two calls of `on_progress`


def serve_tiered(
    workload: Workload,
    members: Sequence[Member],
    tiers: Sequence[Tier],
    name: str,
    router: Router,
    on_progress: Callable[[int], None] | None = None,
) -> FleetResult:
    """Serve `workload` by replicas that are all there from start to end, behind `router`, which is called `name`.

    In the result `transfer_ns` is the time in which a request's prefix came from a tier; `hit_tokens` counts these too,
    a replica's own result only what its device had. A KeyboardInterrupt ends the run: the result says so.

    Raises InputError for replicas that cannot share KV, or a link that is not known.
    """
    token_bytes = _token_bytes([member.spec for member in members])
    clock = simpy.Environment(initial_time=0)
    offers = Offers(workload)
    expected = expected_of(offers.to(members[0].spec).requests)
    flow = TierFlow(clock, workload, tiers, router, token_bytes, expected)
    stations = []
    events = event_capacity(len(members))
    for i, member in enumerate(members):
        station = LandingStation(clock, i, member.spec, offers.to(member.spec), flow.answered, events)
        life = Life(i, member, 0, i, station=station, ready_ns=0, state=State.SERVING)
        flow.add(life, station)
        stations.append(station)
    arrival_ns = (workload.arrival_us * 1000).tolist()

    def come(request: int) -> None:
        if request + 1 < len(arrival_ns):
            Alarm(clock, arrival_ns[request + 1], lambda: come(request + 1))
        flow.arrive(request)
        if on_progress is not None and request % REQUESTS_A_REPORT == 0:
            on_progress(request)

    if arrival_ns:
        Alarm(clock, arrival_ns[0], lambda: come(0))
    complete = True
    try:
        clock.run()
    except KeyboardInterrupt:
        complete = False
    return kv_fleet(name, workload, members, stations, flow, complete, tiers=flow.totals())


def _token_bytes(specs: Sequence[ReplicaSpec]) -> int:
    """KV of one token on all GPUs of a replica; all replicas hold the same."""
    first = specs[0].deployment
    for spec in specs:
        check_lands(spec, "tiers: a replica")
        if (spec.deployment.model, spec.deployment.kv) != (first.model, first.kv):
            raise InputError(
                f"tiers: replicas of {spec.deployment.model} with kv {spec.deployment.kv} and of {first.model} with kv "
                f"{first.kv} cannot share KV; give them equal ones"
            )
    return specs[0].architecture.kv_bytes_per_token(parse_kv_precision(first.kv, "deployment.kv"))
