"""Prefill and decode apart where nothing else happens: the compiled loop, from a workload to a result."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from simkit.cluster.handover import Disaggregation, HandoverTotals
from simkit.cluster.kv_result import Ways, whole_way, without_moved_hits
from simkit.cluster.locality import reach
from simkit.cluster.loops.apart import FULL, IDLE, serve
from simkit.cluster.loops.apart_state import (
    ARRIVAL_NS,
    ARRIVALS,
    BY_ALL,
    BY_RECEIVER,
    BY_SENDER,
    LANDING,
    LINK,
    MOST_KEPT,
    NODE,
    OVER,
    OWED_BYTES,
    PLACES,
    STATION,
    TRIP,
    Yard,
)
from simkit.cluster.moving import Moving, check_moving, token_bytes
from simkit.cluster.offers import Offered, Offers
from simkit.cluster.rack import Rack, new_rack, replica_of, roomier
from simkit.cluster.result import (
    FleetResult,
    LifeSpan,
    Seen,
    accounts_of,
    merged_columns,
    rows_of_each,
    seen_by_clients,
)
from simkit.cluster.roster import Member
from simkit.cluster.routed import finish
from simkit.engine.simulate import result_of
from simkit.engine.state import I64, NEVER, ROWS, records
from simkit.metrics.result import RunResult
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

EVENTS_A_CALL = 1 << 14  # between looks at Ctrl-C and the progress bar: some 100 ms
SPARE, LEAST_SPARE = 1.25, 64  # room for requests over an equal share, before the arrays must grow
ROOMY = 1 << 22  # rows of requests, all replicas together: so many are made without counting
SHARED_BY = {"sender": BY_SENDER, "receiver": BY_RECEIVER, "all": BY_ALL}


def is_plain(settings: Disaggregation, members: Sequence[Member]) -> bool:
    """Whether the compiled loop knows all that may happen."""
    usual = settings.local_below_tokens == 0 and settings.local_when_queued is None and not settings.layerwise
    return usual and all(
        member.engines == 1 and member.spec.deployment.engine.discipline == "vllm-v1" for member in members
    )


def serve_apart(
    workload: Workload,
    members: Sequence[Member],
    settings: Disaggregation,
    on_progress: Callable[[int], None] | None = None,
) -> FleetResult:
    """As simkit.cluster.live.serve_live without a router, to the byte, where `is_plain`: all are there all the time."""
    check_moving(Moving(apart=settings), members)
    specs = [member.spec for member in members]
    offers = Offers(workload).all(specs)
    n = len(workload)
    prefills = np.array([member.pool in settings.prefill for member in members])
    fewest = min(int(prefills.sum()), int((~prefills).sum()))
    room = n + 1 if (n + 1) * len(members) <= ROOMY else min(n + 1, int(n / fewest * SPARE) + LEAST_SPARE)
    longest = int((workload.prompt_tokens.astype(np.int64) + workload.output_tokens).max(initial=1))
    rack = new_rack(specs, offers, room, longest, moves_blocks=True)
    yard = _new_yard(workload, members, settings, offers, prefills)
    complete = True
    try:
        while (why := serve(rack, yard, EVENTS_A_CALL)) != IDLE:
            if why == FULL:
                rack = roomier(rack)
            if on_progress is not None:
                on_progress(int(yard.at[OVER]))
        finish(rack, specs, offers)
    except KeyboardInterrupt:
        complete = False
    return _result(workload, members, offers, rack, yard, complete)


def _new_yard(
    workload: Workload,
    members: Sequence[Member],
    settings: Disaggregation,
    offers: Sequence[Offered],
    prefills: "np.ndarray[tuple[int], np.dtype[np.bool_]]",
) -> Yard:
    """Nothing has happened yet."""
    n, count, spec = len(workload), len(members), members[0].spec
    blocks = max(member.spec.num_blocks for member in members)
    running = max(member.spec.limits.max_running for member in members)
    size = spec.limits.block_size
    stations, trips, links = records(count, STATION), records(n, TRIP), records(count, LINK)
    stations["prefills"] = prefills
    stations["usable"] = [member.spec.num_blocks - 1 for member in members]
    stations["due_ns"] = stations["next_ns"] = links["due_ns"] = NEVER
    stations["there_ns"] = -1
    stations["free_node"] = 1
    nodes = records((count, blocks + 1), NODE)
    nodes["after"] = np.arange(1, blocks + 2)
    prompt = workload.prompt_tokens.astype(np.int64)
    longest_prompt, longest = (
        min(reach(member) for member, first in zip(members, prefills, strict=True) if first == side)
        for side in (True, False)
    )
    trips["prompt"] = prompt
    trips["weight"] = prompt + offers[0].requests["predicted"]
    trips["prefill_blocks"] = (prompt + 1 + size - 1) // size
    trips["decode_blocks"] = (prompt + workload.output_tokens + size - 1) // size
    trips["fits"] = (prompt + workload.output_tokens <= longest) & (prompt + 1 <= longest_prompt)
    trips["local"] = prompt - 1 < size
    for name in ("source", "target", "prefill_row", "decode_row", "turned_away", "sent_ns"):
        trips[name] = -1
    at = np.zeros(PLACES, dtype=np.int64)
    at[ARRIVAL_NS] = int(workload.arrival_us[0]) * 1000 if n else NEVER
    return Yard(
        stations=stations,
        trips=trips,
        links=links,
        ending=np.zeros((count, n), dtype=np.float64),
        number=np.zeros((count, n), dtype=np.int64),
        cargo=np.zeros((count, n), dtype=np.int64),
        late=np.zeros((count, running), dtype=np.int32),
        out=np.zeros((count, 3), dtype=np.int64),
        landed=np.zeros((count, n), dtype=np.int64),
        aboard=np.zeros((count, n), dtype=np.int64),
        nodes=nodes,
        waiting=np.zeros(n, dtype=np.int64),
        ready=np.zeros(n, dtype=np.int64),
        landing=records(n, LANDING),
        there=records(n, LANDING),
        told=np.zeros(running, dtype=np.int64),
        order=np.zeros(count, dtype=np.int64),
        loads=np.zeros(count, dtype=np.int64),
        scratch=np.zeros(int(prompt.max(initial=0)) // size + 1, dtype=np.int32),
        at=at,
        bytes_per_ns=settings.link.bytes_per_s() / 1e9,
        latency_ns=settings.link.latency_ns(),
        block_bytes=size * token_bytes(spec),
        block_tokens=size,
        shared_by=SHARED_BY[settings.shared_by],
        shares_content=workload.prefixes is not None,
    )


def _result(
    workload: Workload, members: Sequence[Member], offers: Sequence[Offered], rack: Rack, yard: Yard, complete: bool
) -> FleetResult:
    """All that came of it."""
    n, trips, at = len(workload), yard.trips, yard.at
    given = [_given(yard, rack, i) for i in range(len(members))]
    parts = [
        _part(workload, rack, yard, i, offer, rows, complete)
        for i, (offer, rows) in enumerate(zip(offers, given, strict=True))
    ]
    replica_of = np.where(trips.sent_ns >= 0, trips.target, -1).astype(np.int32)
    row_of, prefill_row_of = _rows(yard, given, prefills=0), _rows(yard, given, prefills=1)
    mine = rows_of_each(replica_of, len(members))
    columns = merged_columns(
        workload, [(rows, row_of[rows], part.requests) for rows, part in zip(mine, parts, strict=True)]
    )
    columns, outside_ns = _seen(workload, yard).columns(columns, workload)
    decoded = trips.decode_row >= 0
    source = np.where(decoded & (trips.local == 0), trips.source, -1)
    columns = whole_way(columns, Ways(decoded, trips.moved_ns, source, prefill_row_of), parts)
    came_tokens = trips.blocks * yard.block_tokens
    replicas = tuple(
        part if prefills else without_moved_hits(part, came_tokens[rows])
        for part, rows, prefills in zip(parts, given, yard.stations.prefills, strict=True)
    )
    arrived, over = int(at[ARRIVALS]), int(at[OVER])
    fleet = FleetResult(
        router="disaggregated",
        replicas=replicas,
        lives=tuple(
            LifeSpan(i, member.pool, member.spec.deployment.layout.gpus, 0, 0, None) for i, member in enumerate(members)
        ),
        requests=columns,
        replica_of=replica_of,
        row_of=row_of,
        outside_ns=outside_ns,
        accounts=accounts_of(columns.status, arrived, arrived, 0, n - arrived if over == n else 0),
        end_ns=max([int(trips.over_ns.max(initial=0)), *(int(part.end_ns) for part in parts)]),
        complete=complete,
        prefill_of=np.asarray(trips.source, dtype=np.int32),
        handover=_handover(yard),
    )
    return seen_by_clients(fleet, [member.spec for member in members])


def _rows(yard: Yard, given: Sequence[I64], prefills: int) -> I64:
    """[n] each request's row in the result of the replica of a role that was given it; 0: none was."""
    found = np.zeros(len(yard.trips), dtype=np.int64)
    for rows, role in zip(given, yard.stations.prefills, strict=True):
        if role == prefills:
            found[rows] = np.arange(len(rows))
    return found


def _seen(workload: Workload, yard: Yard) -> Seen:
    """What the door knows of all requests."""
    n, trips = len(workload), yard.trips
    came = np.arange(n) < yard.at[ARRIVALS]
    return Seen(
        status=trips.status.astype(np.int8),
        arrived_ns=np.where(came, workload.arrival_us * 1000, -1),
        sent_ns=np.where(came, trips.sent_ns, 0),
        over_ns=np.asarray(trips.over_ns),
        first_token_ns=np.zeros(n, dtype=np.int64),
        generated=np.zeros(n, dtype=np.int64),
    )


def _handover(yard: Yard) -> HandoverTotals:
    """What went over the links; nothing is ever given up."""
    decoded = yard.trips.decode_row >= 0
    local = int(np.count_nonzero(decoded & (yard.trips.local == 1)))
    return HandoverTotals(
        handed_over=int(np.count_nonzero(decoded)) - local,
        local=local,
        bytes_moved=int(yard.links.bytes.sum()),
        bytes_owed=int(yard.at[OWED_BYTES]),
        bytes_given_up=0,
        taken_up=0,
        link_busy_ns=int(yard.links.busy_ns.sum()),
        links=int(yard.links.used.sum()),
        most_kept_blocks=int(yard.at[MOST_KEPT]),
    )


def _given(yard: Yard, rack: Rack, i: int) -> I64:
    """The workload's rows that replica i was sent, in order, those among them that it was too long for."""
    served = rack.given[i, : rack.at[i, ROWS]]
    if yard.stations[i].prefills == 1:
        return served
    away = np.flatnonzero((yard.trips.turned_away >= 0) & (yard.trips.target == i))
    found: I64 = np.insert(served, yard.trips.turned_away[away], away)
    return found


def _part(workload: Workload, rack: Rack, yard: Yard, i: int, offer: Offered, rows: I64, complete: bool) -> RunResult:
    """What replica i has done, over the requests that it was given."""
    prefills = bool(yard.stations[i].prefills)
    mine = selected(workload, rows)
    if prefills:
        mine = replace(mine, output_tokens=np.ones(len(rows), dtype=np.int32))
    accepted = np.flatnonzero(yard.trips.turned_away[rows] < 0)
    result = result_of(replica_of(rack, i, offer.limits), mine, accepted, complete)
    sent_ns = (yard.trips.prefill_sent_ns if prefills else yard.trips.sent_ns)[rows]
    return replace(result, requests=replace(result.requests, arrival_ns=np.asarray(sent_ns)))
