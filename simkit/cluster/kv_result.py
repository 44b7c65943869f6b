"""Waterfalls of requests whose KV was moved: of the whole way, not of the last replica only."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from simkit.cluster.job import Job
from simkit.cluster.roster import Life
from simkit.cluster.trip import Trip
from simkit.engine.state import I32, I64
from simkit.metrics.result import RequestColumns, RunResult, Status

OWN_PARTS = ("prefill_ns", "decode_ns", "stalled_ns", "preempted_ns", "host_ns")


class Ways(NamedTuple):
    """What became of each request's KV, on its last attempt; [n]."""

    decoded: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]"  # it was given to the replica that answers
    moved_ns: I64  # time in which it only waited for KV on links
    source: I64  # index of the replica that computed its prompt for another; -1: none did
    row: I64  # its row there


def ways_of(trips: Sequence[Trip | None], lives: Sequence[Life]) -> Ways:
    """The ways of requests whose last attempts are `trips` [n]; `lives` are of all replicas."""
    rows = _prefill_rows(trips, lives)
    decoded, moved, source, row = [], [], [], []
    for trip in trips:
        decoded.append(trip is not None and trip.decode.row >= 0)
        moved.append(trip.moved_ns if trip is not None else 0)
        there = None if trip is None or trip.prefill is None or not decoded[-1] else trip.source
        source.append(-1 if there is None else there.index)
        row.append(0 if there is None or trip is None or trip.prefill is None else rows[trip.prefill])
    whole = (np.array(values, dtype=np.int64) for values in (moved, source, row))
    return Ways(np.array(decoded, dtype=np.bool_), *whole)


def whole_way(columns: RequestColumns, ways: Ways, results: Sequence[RunResult]) -> RequestColumns:
    """The columns as clients saw them, prefill replica and links counted.

    In `columns` all the time before the last replica had a request is in `queue_ns`; it is parted here. `results` are
    those of all replicas.
    """
    names = ("queue_ns", "transfer_ns", "scheduled_ns", "hit_tokens", "preemptions", *OWN_PARTS)
    found = {name: getattr(columns, name).copy() for name in names}
    seen = ways.decoded & ((columns.status == Status.FINISHED) | (columns.scheduled_ns > 0))
    moved_ns = np.where(seen, ways.moved_ns, 0)
    found["transfer_ns"] += moved_ns
    found["queue_ns"] -= moved_ns
    for number, result in enumerate(results):
        mine = np.flatnonzero(seen & (ways.source == number))
        there, rows = result.requests, ways.row[mine]
        for name in OWN_PARTS:
            part = getattr(there, name)[rows]
            found[name][mine] += part
            found["queue_ns"][mine] -= part
        found["scheduled_ns"][mine] = there.scheduled_ns[rows]
        found["hit_tokens"][mine] = there.hit_tokens[rows]
        found["preemptions"][mine] += there.preemptions[rows]
    return replace(columns, **found)


def prefilled_by(trips: Sequence[Trip | None]) -> I32:
    """[n] the life that computed, or was to compute, each prompt for another replica; -1 where there was none."""
    sources = [-1 if trip is None or trip.source is None else trip.source.index for trip in trips]
    return np.array(sources, dtype=np.int32)


def without_moved_hits(result: RunResult, came_tokens: I64) -> RunResult:
    """KV that came over a link ([rows] tokens) is no hit of this replica's own cache."""
    hits = np.maximum(result.requests.hit_tokens - came_tokens, 0).astype(np.int32)
    return replace(result, requests=replace(result.requests, hit_tokens=hits))


def came_tokens(life: Life) -> I64:
    """[rows] tokens of each of a replica's jobs whose KV came over links."""
    jobs = [] if life.station is None else life.station.jobs
    return np.array([job.kv_tokens for job in jobs], dtype=np.int64)


def _prefill_rows(trips: Sequence[Trip | None], lives: Sequence[Life]) -> dict[Job, int]:
    """The row of each prefill job in its replica's result."""
    wanted = {trip.prefill for trip in trips if trip is not None}
    return {
        job: row
        for life in lives
        if life.station is not None
        for row, job in enumerate(life.station.jobs)
        if job in wanted
    }
