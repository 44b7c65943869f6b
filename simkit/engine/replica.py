"""Making a replica: its arrays, empty."""

import numpy as np

from simkit.engine.record import BINS, BUCKETS, EVENT_CAPACITY, FIRST_BUCKET_NS
from simkit.engine.state import (
    BUCKET,
    FREE_BLOCKS,
    FREE_SLOTS,
    NEVER,
    PLACES,
    ROWS,
    Batches,
    Ledger,
    Limits,
    Pool,
    Progress,
    Recorder,
    Replica,
    Requests,
)


def new_replica(limits: Limits, requests: Requests, num_blocks: int, event_capacity: int = EVENT_CAPACITY) -> Replica:
    """A replica that has computed nothing, with `num_blocks` KV blocks of which block 0 is never used."""
    n = len(requests.arrival_ns)
    at = np.zeros(PLACES, dtype=np.int64)
    at[ROWS] = n
    at[BUCKET] = FIRST_BUCKET_NS
    return Replica(
        limits=limits,
        requests=requests,
        progress=_new_progress(n),
        ledger=_new_ledger(n),
        pool=_new_pool(limits, num_blocks),
        batches=_new_batches(limits.max_running),
        record=_new_recorder(limits, event_capacity),
        running=np.zeros(limits.max_running, dtype=np.int32),
        waiting=np.zeros(n, dtype=np.int32),
        at=at,
    )


def _new_progress(n: int) -> Progress:
    return Progress(
        status=np.zeros(n, dtype=np.int8),
        known=np.zeros(n, dtype=np.int32),
        computed=np.zeros(n, dtype=np.int32),
        placeholders=np.zeros(n, dtype=np.int32),
        slot=np.zeros(n, dtype=np.int32),
        held=np.zeros(n, dtype=np.int32),
        hashed=np.zeros(n, dtype=np.int32),
        preemptions=np.zeros(n, dtype=np.int32),
        hit=np.zeros(n, dtype=np.int32),
    )


def _new_ledger(n: int) -> Ledger:
    return Ledger(
        phase=np.zeros(n, dtype=np.int8),
        scheduled=np.zeros(n, dtype=np.int64),
        first_token=np.zeros(n, dtype=np.int64),
        last_token=np.zeros(n, dtype=np.int64),
        finish=np.zeros(n, dtype=np.int64),
        since=np.zeros((n, 3), dtype=np.int64),
        skipped=np.zeros(n, dtype=np.int64),
        skipped_step=np.full(n, NEVER, dtype=np.int64),
        redo_from=np.zeros(n, dtype=np.int64),
        redo_until=np.zeros(n, dtype=np.int32),
        prefill=np.zeros(n, dtype=np.int64),
        decode=np.zeros(n, dtype=np.int64),
        stalled=np.zeros(n, dtype=np.int64),
        preempted=np.zeros(n, dtype=np.int64),
        host=np.zeros(n, dtype=np.int64),
    )


def _new_pool(limits: Limits, num_blocks: int) -> Pool:
    # the ring of free blocks starts in order of their ids (vLLM block_pool.py)
    ring = np.arange(num_blocks, dtype=np.int32)
    places = 1 << max(4, (2 * num_blocks - 1).bit_length())
    per_request = min(-(-limits.max_model_len // limits.block_size), num_blocks)
    slots = limits.max_running
    count = np.zeros(3, dtype=np.int64)
    count[FREE_BLOCKS] = num_blocks - 1
    count[FREE_SLOTS] = slots
    return Pool(
        references=np.zeros(num_blocks, dtype=np.int32),
        after=np.roll(ring, -1),
        before=np.roll(ring, 1),
        key=np.zeros(num_blocks, dtype=np.int64),
        twin=np.zeros(num_blocks, dtype=np.int32),
        map_key=np.zeros(places, dtype=np.int64),
        map_block=np.zeros(places, dtype=np.int32),
        table=np.empty((slots, per_request), dtype=np.int32),
        free_slots=np.arange(slots, dtype=np.int32)[::-1].copy(),
        count=count,
    )


def _new_batches(max_running: int) -> Batches:
    return Batches(
        request=np.zeros((2, max_running), dtype=np.int32),
        tokens=np.zeros((2, max_running), dtype=np.int32),
        before=np.zeros((2, max_running), dtype=np.int32),
        samples=np.zeros((2, max_running), dtype=np.int8),
        size=np.zeros(2, dtype=np.int64),
        start=np.zeros(2, dtype=np.int64),
        end=np.zeros(2, dtype=np.int64),
        decode=np.zeros(2, dtype=np.int64),
        step=np.zeros(2, dtype=np.int64),
        after=np.zeros((2, 4), dtype=np.int64),
        sums=np.zeros((2, 3), dtype=np.int64),
    )


def _new_recorder(limits: Limits, event_capacity: int) -> Recorder:
    return Recorder(
        itl=np.zeros(BINS, dtype=np.int64),
        batch_requests=np.zeros(limits.max_running + 1, dtype=np.int64),
        batch_tokens=np.zeros(limits.max_num_batched_tokens + 1, dtype=np.int64),
        series=np.zeros((BUCKETS, 6), dtype=np.float64),
        event_time=np.zeros(event_capacity, dtype=np.int64),
        event_request=np.zeros(event_capacity, dtype=np.int32),
        event_kind=np.zeros(event_capacity, dtype=np.int8),
        admitted=np.zeros(limits.max_running, dtype=np.int32),
        victims=np.zeros(limits.max_running, dtype=np.int32),
    )
