"""A fleet whose prefill and decode pools are apart serves a workload."""

from collections.abc import Callable, Sequence

import simpy

from simkit.cluster.alarm import Alarm
from simkit.cluster.handover import Disaggregation
from simkit.cluster.kv_flow import KvFlow, expected_of
from simkit.cluster.kv_result import kv_fleet
from simkit.cluster.kv_station import KeepingStation, LandingStation, check_lands
from simkit.cluster.layerwise import ChunkedStation
from simkit.cluster.offers import Offers, event_capacity
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.models.precision import parse_kv_precision
from simkit.workloads.workload import Workload

REQUESTS_A_REPORT = 256  # arrivals between two calls of `on_progress`


def serve_disaggregated(
    workload: Workload,
    members: Sequence[Member],
    settings: Disaggregation,
    on_progress: Callable[[int], None] | None = None,
) -> FleetResult:
    """Serve `workload`; `members` belong to the pools that `settings` names.

    A request is rejected if it is too long for any of them. In the result a request's replica is its decode replica;
    its waterfall is that of its whole way: `transfer_ns` is what its KV adds, waiting for room and at the gateway is in
    `queue_ns`. A KeyboardInterrupt ends the run: the result says so.

    Raises InputError for pools that are missing or that do not go together, or a link that is not known.
    """
    specs = _checked(members, settings)
    clock = simpy.Environment(initial_time=0)
    offers = Offers(workload)
    flow = KvFlow(
        clock,
        workload,
        settings,
        specs[0].limits.block_size,
        specs[0].limits.block_size * _token_bytes(specs[0]),
        expected_of(offers.to(specs[0]).requests),
    )
    stations = _stations(clock, members, settings, offers, flow)
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
    return kv_fleet("disaggregated", workload, members, stations, flow, complete, handover=flow.totals())


def _checked(members: Sequence[Member], settings: Disaggregation) -> list[ReplicaSpec]:
    """The deployments; all hold the same KV in blocks of the same size."""
    pools = {member.pool for member in members}
    for name in (*settings.prefill, *settings.decode):
        if name not in pools:
            raise InputError(
                f"disaggregation: pool {name!r} has no replica; there are {', '.join(sorted(pools)) or 'none'}"
            )
    for name in sorted(pools - {*settings.prefill, *settings.decode}):
        raise InputError(f"disaggregation: pool {name!r} is in neither prefill nor decode; name it in one")
    first = members[0].spec
    for member in members:
        spec = member.spec
        for what, mine, others in (
            ("model", spec.deployment.model, first.deployment.model),
            ("kv", spec.deployment.kv, first.deployment.kv),
            ("engine.block_size", spec.limits.block_size, first.limits.block_size),
        ):
            if mine != others:
                raise InputError(
                    f"disaggregation: pool {member.pool!r} has {what} {mine!r}, pool {members[0].pool!r} {others!r}; "
                    "KV can only be handed over between equal ones"
                )
        if member.pool in settings.decode:
            check_lands(spec, f"disaggregation: pool {member.pool!r}")
    return [member.spec for member in members]


def _token_bytes(spec: ReplicaSpec) -> int:
    """KV of one token on all GPUs of a replica, copies of tensor parallelism not counted twice."""
    return spec.architecture.kv_bytes_per_token(parse_kv_precision(spec.deployment.kv, "deployment.kv"))


def _stations(
    clock: simpy.Environment, members: Sequence[Member], settings: Disaggregation, offers: Offers, flow: KvFlow
) -> list[KeepingStation | LandingStation]:
    """A station a member, in order; the flow is told of them."""
    events = event_capacity(len(members))
    prefills: list[KeepingStation] = []
    decodes: list[LandingStation] = []
    stations: list[KeepingStation | LandingStation] = []
    for life, member in enumerate(members):
        offered = offers.to(member.spec)
        if member.pool in settings.decode:
            decodes.append(LandingStation(clock, life, member.spec, offered, flow.answered, events))
            stations.append(decodes[-1])
            continue
        kind = ChunkedStation if settings.layerwise else KeepingStation
        prefills.append(kind(clock, life, member.spec, offered, flow.prefilled, events))
        if isinstance(prefills[-1], ChunkedStation):
            prefills[-1].on_chunk = flow.computed
        stations.append(prefills[-1])
    flow.prefills, flow.decodes = prefills, decodes
    return stations
