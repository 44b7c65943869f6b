"""Waterfalls of requests whose KV was moved: of the whole way, not of the last replica only."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from simkit.cluster.job import Job
from simkit.cluster.roster import Life
from simkit.cluster.trip import Trip
from simkit.engine.state import I32
from simkit.metrics.result import RequestColumns, RunResult, Status

OWN_PARTS = ("prefill_ns", "decode_ns", "stalled_ns", "preempted_ns", "host_ns")


def whole_way(
    columns: RequestColumns, trips: Sequence[Trip | None], results: Sequence[RunResult], lives: Sequence[Life]
) -> RequestColumns:
    """The columns as clients saw them, prefill replica and links counted.

    In `columns` all the time before the last replica had a request is in `queue_ns`; it is parted here. `trips` [n] are
    those of the last attempts, `results` and `lives` of all replicas.
    """
    names = ("queue_ns", "transfer_ns", "scheduled_ns", "hit_tokens", "preemptions", *OWN_PARTS)
    found = {name: getattr(columns, name).copy() for name in names}
    rows = _prefill_rows(trips, lives)
    for request, trip in enumerate(trips):
        seen = columns.status[request] == Status.FINISHED or columns.scheduled_ns[request] > 0
        if trip is None or trip.decode.row < 0 or not seen:
            continue
        found["transfer_ns"][request] += trip.moved_ns
        found["queue_ns"][request] -= trip.moved_ns
        if trip.prefill is None or trip.source is None:
            continue
        there, row = results[trip.source.index].requests, rows[trip.prefill]
        for name in OWN_PARTS:
            part = int(getattr(there, name)[row])
            found[name][request] += part
            found["queue_ns"][request] -= part
        found["scheduled_ns"][request] = there.scheduled_ns[row]
        found["hit_tokens"][request] = there.hit_tokens[row]
        found["preemptions"][request] += there.preemptions[row]
    return replace(columns, **found)


def prefilled_by(trips: Sequence[Trip | None]) -> I32:
    """[n] the life that computed, or was to compute, each prompt for another replica; -1 where there was none."""
    sources = [-1 if trip is None or trip.source is None else trip.source.index for trip in trips]
    return np.array(sources, dtype=np.int32)


def without_moved_hits(result: RunResult, life: Life) -> RunResult:
    """KV that came over a link is no hit of this replica's own cache."""
    jobs = [] if life.station is None else life.station.jobs
    came = np.array([job.kv_tokens for job in jobs], dtype=np.int32)
    hits = np.maximum(result.requests.hit_tokens - came, 0)
    return replace(result, requests=replace(result.requests, hit_tokens=hits))


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
