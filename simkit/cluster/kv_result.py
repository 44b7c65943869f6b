"""What came of requests whose KV was moved: one result of all replicas, and waterfalls of the whole way."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from simkit.cluster.handover import HandoverTotals
from simkit.cluster.result import FleetResult, LifeSpan, accounts_of, merged_columns
from simkit.cluster.roster import Member
from simkit.cluster.station import Station
from simkit.cluster.tiers import TierTotals
from simkit.cluster.trip import Trip
from simkit.engine.simulate import result_of
from simkit.engine.state import I64
from simkit.metrics.result import RequestColumns, RunResult, Status
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

OWN_PARTS = ("prefill_ns", "decode_ns", "stalled_ns", "preempted_ns", "host_ns")


class Flow(Protocol):
    """What a gateway knows of every request, by row of the workload."""

    status: list[Status]
    over_ns: list[int]
    trips: list[Trip | None]  # None: it has not arrived


def kv_fleet(
    name: str,
    workload: Workload,
    members: Sequence[Member],
    stations: Sequence[Station],
    flow: Flow,
    complete: bool,
    handover: HandoverTotals | None = None,
    tiers: tuple[TierTotals, ...] = (),
) -> FleetResult:
    """The result of replicas that were there from the start to the end, one station a member."""
    n = len(workload)
    results = [_station_result(workload, station, complete) for station in stations]
    replica_of = np.array([-1 if trip is None else trip.decode.life for trip in flow.trips], dtype=np.int32)
    row_of, first_row = _rows(stations, flow, n)
    parts: list[tuple[I64, I64, RequestColumns]] = []
    for life, result in enumerate(results):
        rows = np.flatnonzero(replica_of == life)
        parts.append((rows, row_of[rows], result.requests))
    columns = _whole_way(merged_columns(workload, parts), workload, flow, results, first_row)
    arrived = sum(trip is not None for trip in flow.trips)
    sent = np.array([0 if trip is None else max(0, trip.decode.sent_ns) for trip in flow.trips], dtype=np.int64)
    return FleetResult(
        router=name,
        replicas=tuple(_without_moved_hits(result, station) for result, station in zip(results, stations, strict=True)),
        lives=tuple(
            LifeSpan(i, member.pool, member.spec.deployment.layout.gpus, 0, 0, None) for i, member in enumerate(members)
        ),
        requests=columns,
        replica_of=replica_of,
        row_of=row_of,
        outside_ns=np.where(replica_of >= 0, np.maximum(sent - workload.arrival_us * 1000, 0), 0),
        accounts=accounts_of(columns.status, arrived, arrived, 0),
        end_ns=max([*flow.over_ns, *(int(result.end_ns) for result in results), 0]),
        complete=complete,
        handover=handover,
        tiers=tiers,
    )


def _rows(stations: Sequence[Station], flow: Flow, n: int) -> tuple[I64, I64]:
    """[n] each request's row in its decode replica's result, and in its prefill replica's; 0 where there is none."""
    row_of = np.zeros(n, dtype=np.int64)
    first_row = np.zeros(n, dtype=np.int64)
    for station in stations:
        for row, job in enumerate(station.jobs):
            trip = flow.trips[job.request]
            assert trip is not None, "its job was given"
            (row_of if trip.decode is job else first_row)[job.request] = row
    return row_of, first_row


def _station_result(workload: Workload, station: Station, complete: bool) -> RunResult:
    """What one replica has done, over the jobs that it was given."""
    jobs = station.jobs
    rows = np.array([job.request for job in jobs], dtype=np.int64)
    mine = replace(
        selected(workload, rows), output_tokens=np.array([job.output_tokens for job in jobs], dtype=np.int32)
    )
    accepted = np.array([i for i, job in enumerate(jobs) if job.row >= 0], dtype=np.int64)
    result = result_of(station.finish(), mine, accepted, complete)
    sent = np.array([job.sent_ns for job in jobs], dtype=np.int64)
    return replace(result, requests=replace(result.requests, arrival_ns=sent))


def _whole_way(
    columns: RequestColumns, workload: Workload, flow: Flow, results: Sequence[RunResult], first_row: I64
) -> RequestColumns:
    """The columns as clients saw them: prefill replica, waiting, link and last replica together."""
    found = {name: getattr(columns, name).copy() for name in ("queue_ns", "transfer_ns", "scheduled_ns", *OWN_PARTS)}
    hits, preemptions = columns.hit_tokens.copy(), columns.preemptions.copy()
    for request, trip in enumerate(flow.trips):
        if trip is None or trip.decode.row < 0:
            continue
        arrived = int(workload.arrival_us[request]) * 1000
        found["transfer_ns"][request] = trip.decode.sent_ns - trip.departs_ns
        found["queue_ns"][request] += trip.departs_ns - arrived
        if trip.prefill is None:
            continue
        there = results[trip.prefill.life].requests
        row = int(first_row[request])
        for name in OWN_PARTS:
            found[name][request] += getattr(there, name)[row]
        # of the time until it could leave, all but what its prefill took was waiting
        found["queue_ns"][request] += trip.prefill.sent_ns - trip.prefilled_ns + int(there.queue_ns[row])
        found["scheduled_ns"][request] = there.scheduled_ns[row]
        hits[request] = there.hit_tokens[row]
        preemptions[request] += there.preemptions[row]
    status = np.array(flow.status, dtype=np.int8)
    return replace(columns, status=status, hit_tokens=hits, preemptions=preemptions, **found)


def _without_moved_hits(result: RunResult, station: Station) -> RunResult:
    """KV that came over a link is no hit of this replica's own cache."""
    came = np.array([job.kv_tokens for job in station.jobs], dtype=np.int32)
    hits = np.maximum(result.requests.hit_tokens - came, 0)
    return replace(result, requests=replace(result.requests, hit_tokens=hits))
