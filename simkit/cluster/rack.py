"""Many replicas as one set of arrays, so that compiled code can go from one to the next.

Row i of every array is replica i's. Replicas may differ in model, device and settings: arrays are as wide as the widest
needs, and `Shape` says how much of each row counts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.cluster.offers import Offered, event_capacity, least_step_ns
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.discipline import minds_blocks
from simkit.engine.replica import new_replica
from simkit.engine.state import (
    ABORT,
    F64,
    I32,
    I64,
    LEDGER,
    NAMED,
    NEVER,
    PROGRESS,
    REQUEST,
    ROWS,
    TENANT,
    Limits,
    Pool,
    Recorder,
    Records,
    Replica,
    records,
)
from simkit.models.steptables import StepTables

# the limits as a record, whose fields compiled code reads like those of the tuple
_DTYPES = {bool: np.bool_, int: np.int64, float: np.float64}
LIMITS = np.dtype([(name, _DTYPES[kind]) for name, kind in Limits.__annotations__.items()])

SHAPE = np.dtype(
    [
        ("kind", np.int64),  # row of `offered`, `fits` and `limits`: how the workload looks to it
        ("blocks", np.int64),
        ("places", np.int64),
        ("tables", np.int64),  # index of its step tables
        ("least_step_ns", np.int64),  # the shortest time in which its device computes a token
        ("first_content_id", np.int64),  # where its own content ids begin: others have blocks of other sizes
        ("content_ids", np.int64),  # how many it has: none without caching
    ]
)

# what the door knows of a replica
COUNTER = np.dtype(
    [
        ("requests", np.int64),  # given and not answered
        ("tokens", np.int64),  # their prompts and the answers expected of them
        ("late", np.int64),  # of these, those that the latest step answers, which has been run but is not over yet
        ("late_tokens", np.int64),
        ("late_ns", np.int64),  # when it is over
        ("wake_ns", np.int64),  # before this nobody is answered
    ]
)

TABLE_SPAN = np.dtype([(part + end, np.int64) for part in StepTables._fields for end in ("", "_rows", "_columns")])

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Rack(NamedTuple):
    """Replicas [R], whose workload of n requests is seen in [K] ways."""

    offered: Records  # REQUEST [K, n]
    fits: NDArray[np.bool_]  # [K, n] False: longer than the context, turned away
    content_ids: I64
    limits: Records  # LIMITS [K]
    shape: Records  # SHAPE [R]
    counters: Records  # COUNTER [R]
    requests: Records  # REQUEST [R, room]; from here on the arrays of simkit.engine.state.Replica
    given: I64  # [R, room] the workload's row of each
    progress: Records
    ledger: Records
    waiting: I32
    aborts: Records  # ABORT [0]
    blocks: Records
    places: Records
    table: I32
    free_slots: I32
    counts: I64
    entries: Records
    batches: Records
    itl: I64
    batch_requests: I64
    batch_tokens: I64
    series: F64
    events: Records
    admitted: I32
    victims: I32
    running: I32
    tenants: Records
    at: I64
    table_spans: Records  # TABLE_SPAN [T] where each table begins in `table_values` and how many rows it has
    table_values: F64


def new_rack(
    specs: Sequence[ReplicaSpec], offers: Sequence[Offered], room: int, longest: int, *, moves_blocks: bool
) -> Rack:
    """Replicas that have computed nothing, each with room for `room` requests of at most `longest` tokens.

    `offers` [R] is the workload as each of them takes it; equal ones are kept once. `moves_blocks`: somebody beside a
    replica's requests holds blocks of it.
    """
    kinds = list({id(offer): offer for offer in offers}.values())
    kind_of = {id(offer): number for number, offer in enumerate(kinds)}
    tables = list({id(spec.tables): spec.tables for spec in specs}.values())
    table_of = {id(table): number for number, table in enumerate(tables)}
    # the longest table of blocks that this workload can fill, and one block for a token in flight
    made: dict[tuple[int, int], Replica] = {}
    for spec, offer in zip(specs, offers, strict=True):
        key = (id(spec), id(offer))
        if key not in made:
            made[key] = _empty(spec, offer, len(specs), longest, moves_blocks)
    models = [made[id(spec), id(offer)] for spec, offer in zip(specs, offers, strict=True)]
    count = len(specs)
    tenants = 1 + max(int(kind.requests["tenant"].max(initial=0)) for kind in kinds)
    first_content_id, content_ids = _contents([kind.content_ids for kind in kinds])
    shape = records(count, SHAPE)
    limits = records(len(kinds), LIMITS)
    for number, kind in enumerate(kinds):
        limits[number] = tuple(kind.limits)
    for i, (spec, offer) in enumerate(zip(specs, offers, strict=True)):
        shape[i] = (
            kind_of[id(offer)],
            len(models[i].pool.blocks),
            len(models[i].pool.places),
            table_of[id(spec.tables)],
            least_step_ns(spec.tables),
            first_content_id[kind_of[id(offer)]],
            len(offer.content_ids),
        )
    counters = records(count, COUNTER)
    counters["wake_ns"] = NEVER
    spans, values = _flat_tables(tables)
    pools, logs = [model.pool for model in models], [model.record for model in models]
    return Rack(
        offered=_together([kind.requests for kind in kinds]).view(np.recarray),
        fits=_together([kind.fits for kind in kinds]),
        content_ids=content_ids,
        limits=limits,
        shape=shape,
        counters=counters,
        requests=records((count, room), REQUEST),
        given=np.zeros((count, room), dtype=np.int64),
        progress=records((count, room), PROGRESS),
        ledger=records((count, room), LEDGER),
        waiting=np.zeros((count, room), dtype=np.int32),
        aborts=records(0, ABORT),
        blocks=_blocks(pools),
        places=_zeros([pool.places for pool in pools]),
        table=np.empty((count, *np.max([pool.table.shape for pool in pools], axis=0)), dtype=np.int32),
        free_slots=_rows([pool.free_slots for pool in pools]),
        counts=_rows([pool.counts for pool in pools]),
        entries=_zeros([model.entries for model in models]),
        batches=_zeros([model.batches for model in models]),
        itl=_zeros([log.itl for log in logs]),
        batch_requests=_zeros([log.batch_requests for log in logs]),
        batch_tokens=_zeros([log.batch_tokens for log in logs]),
        series=_zeros([log.series for log in logs]),
        events=_zeros([log.events for log in logs]),
        admitted=_zeros([log.admitted for log in logs]),
        victims=_zeros([log.victims for log in logs]),
        running=_zeros([model.running for model in models]),
        tenants=records((count, tenants), TENANT),
        at=_rows([model.at for model in models]),
        table_spans=spans,
        table_values=values,
    )


def _empty(spec: ReplicaSpec, offer: Offered, replicas: int, longest: int, moves_blocks: bool) -> Replica:
    """A replica without requests, to take shapes and first values from."""
    reach = min(offer.limits.max_model_len, longest + offer.limits.block_size)
    return new_replica(
        offer.limits._replace(max_model_len=reach),
        records(0, REQUEST),
        np.zeros(0, dtype=np.int64),
        records(0, ABORT),
        spec.num_blocks,
        event_capacity(replicas),
        named=moves_blocks or minds_blocks(spec.deployment.engine.discipline, offer.content_ids),
    )


def _together(parts: Sequence[Array]) -> Any:
    """Arrays of one length as rows of one; a single one stays where it is."""
    return parts[0][np.newaxis] if len(parts) == 1 else np.stack(parts)


def _zeros(parts: Sequence[Array]) -> Any:
    """Rows of zeros, one for each array, as large in each direction as the largest."""
    shape = np.max([part.shape for part in parts], axis=0)
    stacked = np.zeros((len(parts), *shape), dtype=parts[0].dtype)
    return stacked.view(np.recarray) if stacked.dtype.names else stacked


def _rows(parts: Sequence[Array]) -> Any:
    """The arrays as rows of one, zeros beyond their ends."""
    stacked = _zeros(parts)
    for row, part in zip(stacked, parts, strict=True):
        row[tuple(slice(size) for size in part.shape)] = part
    return stacked


def _blocks(pools: Sequence[Pool]) -> Any:
    """The pools' blocks as rows of one; where all only count theirs, memory that nobody has touched."""
    parts = [pool.blocks for pool in pools]
    return _rows(parts) if any(pool.counts[NAMED] for pool in pools) else _zeros(parts)


def _flat_tables(tables: Sequence[StepTables]) -> tuple[Records, F64]:
    """All step tables in one array of values; where each begins, and its shape."""
    spans = records(len(tables), TABLE_SPAN)
    parts: list[F64] = []
    start = 0
    for i, table in enumerate(tables):
        for name in StepTables._fields:
            value = getattr(table, name)
            if isinstance(value, int):
                spans[name][i] = value
                continue
            spans[name][i] = start
            spans[f"{name}_rows"][i], spans[f"{name}_columns"][i] = (*value.shape, 1)[:2]
            parts.append(np.ascontiguousarray(value, dtype=np.float64).ravel())
            start += value.size
    return spans, np.concatenate(parts)


def _contents(kinds: Sequence[I64]) -> tuple[list[int], I64]:
    """Where each kind's content ids begin, and those of all kinds, equal ones once."""
    starts: list[int] = []
    parts: list[I64] = []
    held = 0
    for kind, ids in enumerate(kinds):
        same = next((i for i in range(kind) if np.array_equal(kinds[i], ids)), None)
        starts.append(held if same is None else starts[same])
        if same is None:
            parts.append(ids)
            held += len(ids)
    return starts, np.concatenate(parts)


def replica_of(rack: Rack, i: int, limits: Limits) -> Replica:
    """Replica i of the rack as one by itself: the same arrays, as long as they count."""
    shape = rack.shape[i]
    rows = int(rack.at[i, ROWS])

    def row(array: Array, length: int | None = None) -> Any:
        part = array[i] if length is None else array[i, :length]
        return part.view(np.recarray) if part.dtype.names else part

    pool = Pool(
        blocks=row(rack.blocks, shape.blocks),
        places=row(rack.places, shape.places),
        table=rack.table[i],
        free_slots=rack.free_slots[i],
        counts=rack.counts[i],
    )
    log = Recorder(
        itl=rack.itl[i],
        batch_requests=rack.batch_requests[i, : limits.max_running + 1],
        batch_tokens=rack.batch_tokens[i, : limits.max_num_batched_tokens + 1],
        series=rack.series[i],
        events=row(rack.events),
        admitted=rack.admitted[i],
        victims=rack.victims[i],
    )
    return Replica(
        limits=limits,
        requests=row(rack.requests, rows),
        content_ids=rack.content_ids[shape.first_content_id : shape.first_content_id + shape.content_ids],
        aborts=rack.aborts,
        progress=row(rack.progress, rows),
        ledger=row(rack.ledger, rows),
        pool=pool,
        entries=row(rack.entries),
        batches=row(rack.batches),
        record=log,
        running=rack.running[i],
        waiting=rack.waiting[i],
        tenants=row(rack.tenants),
        at=rack.at[i],
    )


def roomier(rack: Rack) -> Rack:
    """The same rack with twice the room for requests; the old one must not be used again."""
    return rack._replace(
        requests=_doubled(rack.requests),
        given=_doubled(rack.given),
        progress=_doubled(rack.progress),
        ledger=_doubled(rack.ledger),
        waiting=_doubled(rack.waiting),
    )


def _doubled(array: Array) -> Any:
    wider = np.zeros((array.shape[0], 2 * array.shape[1]), dtype=array.dtype)
    wider[:, : array.shape[1]] = array
    return wider.view(np.recarray) if array.dtype.names else wider
