"""A fleet's result as one run's, for summaries, reports and whoever knows runs only."""

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from simkit.cluster.result import FleetResult, rows_of_each
from simkit.engine.record import BUCKETS
from simkit.engine.state import F64, I64, NEVER
from simkit.errors import InputError
from simkit.metrics.result import Events, Histogram, RequestColumns, RunResult, Series, Status


def merged_run(fleet: FleetResult) -> RunResult:
    """All replicas as one: counts add up, shares of time and of memory are means over the replicas' time.

    KV blocks are the most that were there at once: a crashed replica's are gone before those of its next life come.
    `requests` is what clients saw, in order of arrival, which in closed loops is another than the workload's; what was
    never asked, because no answer came before it, is left out. Events are those of each request's last attempt.
    Raises InputError for a fleet that never had a replica.
    """
    parts = fleet.replicas
    if not parts:
        raise InputError(
            f"cluster.autoscaling: no replica was ever started for {fleet.accounts.arrived} requests; let the rule ask "
            "for one, or set least: 1"
        )
    present_ns = [
        max(0, (fleet.end_ns if life.ended_ns is None else life.ended_ns) - life.ready_ns)
        for life in fleet.lives
        if life.ready_ns is not None
    ]
    busy = sum(part.busy_ns for part in parts) / max(1, sum(present_ns))
    requests, events = _as_they_came(fleet, _events(fleet))
    return RunResult(
        requests=requests,
        series=_series(fleet),
        events=events,
        itl=_added([part.itl for part in parts]),
        batch_requests=_added([part.batch_requests for part in parts]),
        batch_tokens=_added([part.batch_tokens for part in parts]),
        steps=sum(part.steps for part in parts),
        busy_ns=round(busy * fleet.end_ns),
        end_ns=fleet.end_ns,
        computed_tokens=sum(part.computed_tokens for part in parts),
        recomputed_tokens=sum(part.recomputed_tokens for part in parts),
        blocks=_most_blocks_at_once(fleet),
        blocks_free_at_end=sum(part.blocks_free_at_end for part, there in _with_stay(fleet) if there.ended_ns == NEVER),
        complete=fleet.complete,
    )


class Stay(NamedTuple):
    """When a replica could serve; times in ns."""

    ready_ns: int
    ended_ns: int  # NEVER: it was there at the end


def _with_stay(fleet: FleetResult) -> list[tuple[RunResult, Stay]]:
    """The replicas that could ever serve."""
    return [
        (part, Stay(life.ready_ns, NEVER if life.ended_ns is None else life.ended_ns))
        for life, part in zip(fleet.lives, fleet.replicas, strict=True)
        if life.ready_ns is not None and life.ready_ns <= fleet.end_ns
    ]


def _most_blocks_at_once(fleet: FleetResult) -> int:
    """KV blocks of all replicas that could serve at one moment, of the moment that had most."""
    changes = [
        (at_ns, blocks)
        for part, stay in _with_stay(fleet)
        if stay.ended_ns > stay.ready_ns
        for at_ns, blocks in ((stay.ready_ns, part.blocks), (stay.ended_ns, -part.blocks))
    ]
    # at one moment who goes is gone before who comes is there
    return max(accumulate(blocks for _, blocks in sorted(changes)), default=0)


def request_places(fleet: FleetResult) -> dict[str, I64]:
    """For the requests of `merged_run`, in its order, the numbers of the replicas that they were at; -1: at none.

    `replica` is where a request was sent last: who answered it, if it was answered. `prefill_replica`, where prefill
    and decode are apart, is who computed its prompt for that one.
    """
    number: I64 = np.array([*(life.number for life in fleet.lives), -1], dtype=np.int64)  # of no life, -1, is the last
    rows = _rows_as_they_came(fleet)
    at = {"replica": fleet.replica_of, "prefill_replica": fleet.prefill_of}
    return {name: number[lives if rows is None else lives[rows]] for name, lives in at.items() if lives is not None}


def _rows_as_they_came(fleet: FleetResult) -> I64 | None:
    """The requests that were asked in order of arrival; None where these are all, in the order that they have."""
    found = fleet.requests
    asked = np.ones(len(found), dtype=np.bool_)
    if fleet.accounts.never_asked > 0:
        asked = found.status != Status.UNFINISHED
    if asked.all() and (np.diff(found.arrival_ns) >= 0).all():
        return None
    rows = np.flatnonzero(asked).astype(np.int64)
    return rows[np.argsort(found.arrival_ns[rows], kind="stable")]


def _as_they_came(fleet: FleetResult, events: Events) -> tuple[RequestColumns, Events]:
    """The requests that were asked in order of arrival, and events of these rows."""
    found, rows = fleet.requests, _rows_as_they_came(fleet)
    if rows is None:
        return found, events
    columns = {field.name: getattr(found, field.name)[rows] for field in fields(found) if field.name != "request_id"}
    names = found.request_id or range(len(found))
    place: I64 = np.full(len(found), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    return (
        RequestColumns(request_id=tuple(str(names[row]) for row in rows.tolist()), **columns),
        replace(events, request=place[events.request]),
    )


def _added(parts: Sequence[Histogram]) -> Histogram:
    """The sum of histograms over one grid, of which some end earlier."""
    longest = max(parts, key=lambda part: len(part.count))
    count: I64 = np.zeros(len(longest.count), dtype=np.int64)
    for part in parts:
        count[: len(part.count)] += part.count
    return Histogram(longest.lower, count, sum(part.total for part in parts), max(part.maximum for part in parts))


def _series(fleet: FleetResult) -> Series:
    """Over the coarsest of the replicas' buckets; shares are means over the replicas that were ready.

    Of memory a larger one has a larger part in the mean: it is a share of all blocks that are there.
    """
    bucket_ns = max(part.series.bucket_ns for part in fleet.replicas)
    while fleet.end_ns // bucket_ns >= BUCKETS:  # it went on after the last of its replicas had done anything
        bucket_ns *= 2
    length = max(fleet.end_ns // bucket_ns + 1, 1)
    present, memory = np.zeros(length, dtype=np.float64), np.zeros(length, dtype=np.float64)
    largest = max(1, *(part.blocks for part in fleet.replicas))
    total = {name: np.zeros(length, dtype=np.float64) for name in ("running", "waiting", "kv_used", "busy")}
    tokens = np.zeros(length, dtype=np.float64)
    preemptions = np.zeros(length, dtype=np.int64)
    edges = np.arange(length + 1, dtype=np.int64) * bucket_ns
    for life, part in zip(fleet.lives, fleet.replicas, strict=True):
        series, fold = part.series, bucket_ns // part.series.bucket_ns
        weight = part.blocks / largest
        for name in total:
            scale = weight if name == "kv_used" else 1.0
            total[name] += scale * _folded(getattr(series, name), fold, length) / fold
        tokens += _folded(series.tokens_per_s, fold, length) / fold
        preemptions += _folded(series.preemptions.astype(np.float64), fold, length).astype(np.int64)
        if life.ready_ns is not None:
            end_ns = fleet.end_ns if life.ended_ns is None else life.ended_ns
            inside = np.minimum(edges[1:], end_ns) - np.maximum(edges[:-1], life.ready_ns)
            present += np.maximum(inside, 0) / bucket_ns
            memory += weight * np.maximum(inside, 0) / bucket_ns
    share = 1.0 / np.maximum(present, 1e-9)
    there = present > 0
    return Series(
        bucket_ns=bucket_ns,
        running=total["running"],
        waiting=total["waiting"],
        kv_used=np.where(there, np.minimum(total["kv_used"] / np.maximum(memory, 1e-9), 1.0), 0.0),
        tokens_per_s=tokens,
        preemptions=preemptions,
        busy=np.where(there, np.minimum(total["busy"] * share, 1.0), 0.0),
    )


def _folded(values: F64, fold: int, length: int) -> F64:
    """[length] sums of `fold` neighbours each."""
    padded = np.zeros(length * fold, dtype=np.float64)
    used = min(len(values), len(padded))
    padded[:used] = values[:used]
    folded: F64 = padded.reshape(length, fold).sum(axis=1)
    return folded


def _events(fleet: FleetResult) -> Events:
    """Those that the replicas logged, in order of time, with the workload's rows."""
    times, requests, kinds = [], [], []
    for part, mine in zip(fleet.replicas, rows_of_each(fleet.replica_of, len(fleet.replicas)), strict=True):
        request_of: I64 = np.full(max(1, len(part.requests)), -1, dtype=np.int64)
        request_of[fleet.row_of[mine]] = mine
        request = request_of[part.events.request]
        last = request >= 0  # an attempt before the last is not drawn
        times.append(part.events.time_ns[last])
        requests.append(request[last])
        kinds.append(part.events.kind[last])
    time_ns = np.concatenate(times)
    order = np.argsort(time_ns, kind="stable")
    return Events(
        time_ns=time_ns[order],
        request=np.concatenate(requests)[order],
        kind=np.concatenate(kinds)[order],
        complete=all(part.events.complete for part in fleet.replicas),
    )
