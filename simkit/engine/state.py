"""Everything a replica knows, as arrays that the compiled functions change in place.

Requests are rows, numbered in order of arrival. A batch is what one step computes; up to two are in flight, because
asynchronous scheduling plans a step while the one before runs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
I8 = NDArray[np.int8]
F64 = NDArray[np.float64]

NEVER = np.iinfo(np.int64).max  # a time that does not come

# status of a request
PENDING, WAITING, RUNNING, PREEMPTED, FINISHED, ABORTED = range(6)

# phase of a request's life, for the ledger
QUEUED, PREFILL, DECODE, REDO, OVER = range(5)


class Limits(NamedTuple):
    """The engine's settings as the loop needs them; `simkit.engine.settings` makes one from what a user wrote."""

    max_num_batched_tokens: int
    max_running: int  # max_num_seqs, or max_num_active_seqs where set
    max_model_len: int
    block_size: int  # tokens
    long_prefill_token_threshold: int  # 0: none
    adaptive_long_prefill: bool
    lone_request_uncapped: bool  # the threshold does not bind a request that is alone (vLLM 0.32)
    chunked_prefill: bool
    prefix_caching: bool
    priority_policy: bool  # False: first come, first served
    watermark_blocks: int
    reserve_full_isl: bool  # admit only what fits whole
    uncached_free_to_front: bool  # freed blocks without a hash are reused first (vLLM >= 0.24)
    pipeline_depth: int  # 1: schedule after the output is known; 2: asynchronous scheduling


class Requests(NamedTuple):
    """What the workload says of each request; the loop only reads it."""

    arrival_ns: I64  # [n] ascending
    prompt: I32  # [n] tokens
    output: I32  # [n] tokens it will really produce; not for schedulers' eyes
    max_tokens: I32  # [n] the most it asked for; the end is foreseen only if output == max_tokens
    priority: I32  # [n] smaller is more urgent
    hash_start: I64  # [n + 1] request q's content ids are hash_ids[hash_start[q]:hash_start[q + 1]]
    hash_ids: I64  # ids >= 0 of equal content, prefix-chained, each for `hash_span` blocks
    hash_span: int  # KV blocks an id covers
    abort_ns: I64  # [aborts] ascending: when clients cancel
    abort_request: I64  # [aborts] which request


class Progress(NamedTuple):
    """Where each request stands."""

    status: I8  # [n]
    known: I32  # [n] prompt tokens + output tokens delivered
    computed: I32  # [n] tokens whose KV is computed or being computed
    placeholders: I32  # [n] sampled tokens in flight, 0 without asynchronous scheduling
    slot: I32  # [n] row of the block table, while it holds blocks
    held: I32  # [n] blocks held
    hashed: I32  # [n] of these, how many leading ones are registered for reuse
    preemptions: I32  # [n]
    hit: I32  # [n] prompt tokens found in the prefix cache at first admission


class Ledger(NamedTuple):
    """What each request's time went to, in ns. Parts are closed at changes of phase, by differences of running sums."""

    phase: I8  # [n]
    scheduled: I64  # [n] start of the first step with some of it
    first_token: I64  # [n]
    last_token: I64  # [n]
    finish: I64  # [n]
    since: I64  # [n, 3] the running sums (host, decode, extra) when the phase began
    skipped: I64  # [n] device time of steps, this phase, that left the running request out
    skipped_step: I64  # [n] number of the latest such step
    redo_from: I64  # [n] when it was preempted
    redo_until: I32  # [n] tokens it had computed then
    prefill: I64  # [n]
    decode: I64  # [n]
    stalled: I64  # [n]
    preempted: I64  # [n]
    host: I64  # [n]


class Pool(NamedTuple):
    """KV blocks. Block 0 is never used: it is the head and tail of the free queue, a ring of `after` and `before`."""

    references: I32  # [blocks]
    after: I32  # [blocks]
    before: I32  # [blocks]
    key: I64  # [blocks] what content the block is registered for; 0: not registered
    twin: I32  # [blocks] the next block registered for the same content; 0: none
    map_key: I64  # [power of two] open addressing: content key, 0 is empty
    map_block: I32  # [power of two] the first block registered for it
    table: I32  # [slots, blocks a request can hold] the blocks of each running request, in order
    free_slots: I32  # [slots] a stack
    count: I64  # [3] FREE_BLOCKS, DISTINCT_KEYS, FREE_SLOTS


FREE_BLOCKS, DISTINCT_KEYS, FREE_SLOTS = range(3)


class Batches(NamedTuple):
    """The steps in flight: `pipeline_depth` rows used as a ring, oldest first."""

    request: I32  # [2, max_running]
    tokens: I32  # [2, max_running] scheduled now
    before: I32  # [2, max_running] computed before
    samples: I8  # [2, max_running] 1: this step yields a token
    size: I64  # [2]
    start: I64  # [2] ns, when the device begins
    end: I64  # [2] ns
    decode: I64  # [2] ns, what the step would take on the device without its prefill chunks
    step: I64  # [2] its number
    after: I64  # [2, 4] right after it was planned: free blocks, running, waiting, distinct cached contents
    sums: I64  # [2, 3] the ledger's running sums (host, decode, extra) at `end`


class Recorder(NamedTuple):
    """Totals and bounded logs of the whole run."""

    itl: I64  # [bins] histogram over simkit.engine.record.bin_of
    batch_requests: I64  # [max_running + 1] steps by requests in them
    batch_tokens: I64  # [max_num_batched_tokens + 1] steps by tokens in them
    series: F64  # [buckets, 6] time integrals per bucket: running, waiting, kv blocks, tokens, preemptions, busy
    event_time: I64  # [event capacity]
    event_request: I32  # [event capacity]
    event_kind: I8  # [event capacity]
    admitted: I32  # [max_running] requests admitted by the latest schedule(), in order
    victims: I32  # [max_running] requests preempted by it, in order


# places in Replica.at: where the replica is
(
    NOW,  # ns
    DEVICE_FREE,  # ns, end of the last dispatched step
    NEXT_ARRIVAL,  # row of the next request to arrive
    ROWS,  # requests loaded
    NEXT_ABORT,  # index of the next cancellation
    RUNNING_COUNT,
    WAITING_COUNT,
    WAITING_HEAD,  # first come first served: index of the head in `waiting`
    WAITING_TAIL,  # one past its last, or the heap's size
    UNFINISHED,  # requests arrived and not over
    FLUSH,  # 1: ids of finished requests wait to be told to the worker, which takes one more, empty step
    OLDEST,  # ring index of the oldest batch in flight
    IN_FLIGHT,  # batches in flight
    STEPS,  # steps dispatched with at least one token
    ADMITTED,  # how many the latest schedule() admitted
    PREEMPTED_NOW,  # how many it preempted
    SUM_HOST,  # running sums, ns: SUM_HOST + SUM_DECODE + SUM_EXTRA == DEVICE_FREE always
    SUM_DECODE,
    SUM_EXTRA,
    BUSY,  # ns in which a step ran
    COMPUTED_TOKENS,
    REDONE_TOKENS,
    ITL_SUM,  # ns
    ITL_MAX,
    BUCKET,  # ns a bucket of the series
    EVENTS,
    EVENTS_LOST,
    PLACES,
) = range(28)


class Replica(NamedTuple):
    """One replica, whole."""

    limits: Limits
    requests: Requests
    progress: Progress
    ledger: Ledger
    pool: Pool
    batches: Batches
    record: Recorder
    running: I32  # [max_running] in order of admission
    waiting: I32  # [n] a queue with head and tail, or a heap
    at: I64  # [PLACES]
