"""Making a replica: its arrays, empty."""

import numpy as np

from simkit.engine.record import BINS, BUCKETS, EVENT_CAPACITY, FIRST_BUCKET_NS
from simkit.engine.ring import rows_of
from simkit.engine.state import (
    BATCH,
    BLOCK,
    BUCKET,
    ENTRY,
    EVENT,
    FREE_BLOCKS,
    FREE_SLOTS,
    I64,
    LEDGER,
    NAMED,
    PLACE,
    PLACES,
    PROGRESS,
    ROWS,
    TENANT,
    Limits,
    Pool,
    Recorder,
    Records,
    Replica,
    columns_beside,
    records,
)


def new_replica(
    limits: Limits,
    requests: Records,
    content_ids: I64,
    aborts: Records,
    num_blocks: int,
    event_capacity: int = EVENT_CAPACITY,
    named: bool = True,
) -> Replica:
    """A replica that has computed nothing, with `num_blocks` KV blocks of which block 0 is never used.

    `requests` are REQUEST records in order of arrival, `aborts` ABORT records in order of time. With `named` False
    blocks are counted, and get their numbers only when it matters which they are; schedules are the same. It must be
    True where requests have `content_blocks`, and for whoever reads the block table; where requests have several rows
    of blocks it is.
    """
    at = np.zeros(PLACES + limits.stages - 1, dtype=np.int64)
    at[ROWS] = len(requests)
    at[BUCKET] = FIRST_BUCKET_NS
    return Replica(
        limits=limits,
        requests=requests,
        content_ids=content_ids,
        aborts=aborts,
        progress=records(len(requests), PROGRESS),
        ledger=records(len(requests), LEDGER),
        pool=_new_pool(limits, num_blocks, named or limits.window_groups > 0 or limits.full_groups > 1),
        entries=records((rows_of(limits), limits.max_running), ENTRY),
        batches=records(rows_of(limits), BATCH),
        record=_new_recorder(limits, event_capacity),
        running=np.zeros(limits.max_running, dtype=np.int32),
        waiting=np.zeros(len(requests), dtype=np.int32),
        tenants=records(int(requests["tenant"].max(initial=0)) + 1, TENANT),
        at=at,
    )


def _new_pool(limits: Limits, num_blocks: int, named: bool) -> Pool:
    blocks = records(num_blocks, BLOCK)
    if named:
        # the ring of free blocks starts in order of their ids (vLLM block_pool.py)
        ring = np.arange(num_blocks, dtype=np.int32)
        blocks["after"] = np.roll(ring, -1)
        blocks["before"] = np.roll(ring, 1)
    # a full map of all blocks is half empty, so searches are short
    places = 1 << max(4, (2 * num_blocks - 1).bit_length())
    per_request = -(-limits.max_model_len // limits.block_size)
    if limits.full_groups > 0:
        per_request = min(per_request, num_blocks)
    slots = limits.max_running
    counts = np.zeros(4, dtype=np.int64)
    counts[FREE_BLOCKS] = num_blocks - 1
    counts[FREE_SLOTS] = slots
    counts[NAMED] = named
    return Pool(
        blocks=blocks,
        places=records(places, PLACE),
        table=np.empty(
            (slots, (limits.full_groups + limits.window_groups) * per_request + columns_beside(limits)), dtype=np.int32
        ),
        free_slots=np.arange(slots, dtype=np.int32)[::-1].copy(),
        counts=counts,
    )


def _new_recorder(limits: Limits, event_capacity: int) -> Recorder:
    return Recorder(
        itl=np.zeros(BINS, dtype=np.int64),
        batch_requests=np.zeros(limits.max_running + 1, dtype=np.int64),
        batch_tokens=np.zeros(limits.max_num_batched_tokens + 1, dtype=np.int64),
        series=np.zeros((BUCKETS, 6), dtype=np.float64),
        events=records(event_capacity, EVENT),
        admitted=np.zeros(limits.max_running, dtype=np.int32),
        victims=np.zeros(limits.max_running, dtype=np.int32),
    )
