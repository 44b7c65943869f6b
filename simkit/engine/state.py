"""Everything a replica knows, as arrays that the compiled functions change in place.

Requests are rows, numbered in order of arrival. A batch is what one step computes; up to two are in flight, because
asynchronous scheduling plans a step while the one before runs, or as many as the pipeline has stages.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
F64 = NDArray[np.float64]
Records = np.recarray[tuple[int, ...], np.dtype[np.void]]

NEVER = np.iinfo(np.int64).max  # a time that does not come

# status of a request
PENDING, WAITING, RUNNING, PREEMPTED, FINISHED, ABORTED = range(6)

# phase of a request's life, for the ledger
QUEUED, PREFILL, DECODE, REDO, OVER = range(5)


# orderings of the queue, and of victims from the other end
FCFS, PRIORITY, SHORTEST, REMAINING, DEADLINE, FAIR, FEEDBACK = range(7)


class Limits(NamedTuple):
    """The engine's settings as the loop needs them; `simkit.engine.settings` makes one from what a user wrote."""

    max_num_batched_tokens: int
    max_running: int  # max_num_seqs, or max_num_active_seqs where set
    max_model_len: int
    block_size: int  # tokens
    long_prefill_token_threshold: int = 0  # 0: none
    adaptive_long_prefill: bool = False
    lone_request_uncapped: bool = True  # the threshold does not bind a request that is alone (vLLM >= 0.31)
    chunked_prefill: bool = True
    prefix_caching: bool = False
    ordering: int = FCFS  # who goes first: FCFS, PRIORITY, ..
    preemptive: bool = False  # an urgent request may take the place of a running one, not only its memory
    watermark_blocks: int = 0
    reserve_full_isl: bool = True  # admit only what fits whole
    uncached_free_to_front: bool = True  # freed blocks without a hash are reused first (vLLM >= 0.24)
    passed_over_counts: bool = True  # a victim earlier in `running` moves the turn back, served or not (vLLM >= 0.28)
    serves_past_self_victim: bool = False  # by urgency, who stands behind one that left by itself (vLLM >= 0.33)
    content_span: int = 1  # KV blocks that a content id of the workload covers
    pipeline_depth: int = 1  # batches in flight: one for each stage, and one more with asynchronous scheduling
    swap_block_ns: int = 0  # to copy a block to the host or back; 0: whoever is preempted computes again
    speculative_tokens: int = 0  # a draft proposes to each decoding request a step; 0: no draft
    acceptance: float = 0.0  # chance that a proposal is accepted where all before it were
    acceptance_seed: int = 0
    registers_accepted: bool = True  # blocks that accepted drafts fill are reusable at once (vLLM >= 0.33)
    draft_padding: int = 0  # whether who is admitted for one token gets empty drafts: PAD_NOBODY, ..
    draft_ns: int = 0  # to propose all drafts of a step
    draft_request_ns: int = 0  # and, besides, for each request that gets some
    stages: int = 1  # of the pipeline
    full_groups: int = 1  # of layers that see all of their context (simkit.models.kv_groups)
    window_groups: int = 0  # of layers that see a window of it; each group has its own blocks, all of one pool
    windows_first: bool = False  # the order in which the groups take blocks
    window_tokens: int = 0  # that a token of such a layer sees, itself included
    chunked_window: bool = False  # of the aligned chunk of so many tokens, those up to itself
    window_cap_blocks: int = 0  # the most that admission asks for in a window's group; 0: all (vLLM < 0.20)
    uncached_leave_to_front: bool = True  # so are those that a window leaves, or a window's request (vLLM >= 0.23)
    frees_settled: bool = True  # blocks leave a window when no step in flight reads them any more (vLLM >= 0.26)
    retention_blocks: int = 1  # prefixes of every so many blocks stay cached for windows; 0: only what is asked again
    # the groups that see windows keep states, whose last of several new blocks alone is there: where chunks of
    # prompts end for them, CHUNKS_TO_LAST, ..; STATES_LOST: no group does
    state_chunks: int = 0
    state_checkpoints: bool = False  # a chunk that ends a prompt leaves the state of its last whole block, too
    state_blocks: int = 0  # that each running request holds beside its KV, for layers that keep a state
    # what drafts with KV of their own ask for (simkit.engine.draft_kinds), all of it nothing for others
    lookahead_tokens: int = 0  # that a step's blocks hold beyond its own
    admission_lookahead_tokens: int = 0  # the same of who is admitted (vLLM >= 0.23)
    hit_drop: int = 0  # whether the last block that a prefix finds is computed again: KEEP_HIT, ..
    hashes_next_token: bool = False  # a block is reusable once the token after it is known (vLLM >= 0.33)
    draft_slots: int = 0  # tokens of a step's budget that each of its requests takes besides its own (vLLM >= 0.28)
    draft_reserve: int = 0  # that no step gives (vLLM 0.17 to 0.27)


def columns_beside(limits: Limits) -> int:
    """Columns of the table behind the groups' rows: a request's states, or what is kept in mind of them."""
    return STATE_COLUMNS if limits.state_chunks != STATES_LOST else limits.state_blocks


def records(shape: int | tuple[int, ...], kind: np.dtype[np.void]) -> Records:
    """An array of zeroed records; `array.field[i]` reads and writes, compiled or not."""
    return np.zeros(shape, dtype=kind).view(np.recarray)


# who is admitted with one token to compute may get empty drafts to check, so that all requests of a step are alike:
# nobody (vLLM < 0.25); beside running requests, or it waits (0.25 to 0.28); but none near the longest context (0.29);
# also alone, behind a prefix that was found (vLLM >= 0.30)
PAD_NOBODY, PAD_OR_WAIT, PAD_BESIDE, PAD_BEHIND_HIT = range(4)

# a prefix that was found keeps all its blocks, or gives up its last for the draft to read again. Layers with windows
# give up one of what the others left (vLLM < 0.20); all give up the same (0.20), which windows keep cached for a prompt
# that comes again and for one that goes on (0.30); that one may be the prompt's last (0.32)
KEEP_HIT, DROP_BY_KIND, DROP_ONCE, DROP_KEEPING_ENDS, DROP_FROM_END = range(5)


# where prefixes are cached with the states that layers keep, a state is one that a chunk of a prompt left, so chunks
# end with blocks: up to the last whole one (vLLM 0.26), or with any that a step can reach (0.27); from 0.30 on all
# states behind are given back, of which one between gaps stayed before; from 0.32 on not with the block that ends the
# prompt; and from 0.33 on who finds the prompt's last state waits for the step that leaves it, not for later ones
STATES_LOST, CHUNKS_TO_LAST, CHUNKS_TO_ANY, CHUNKS_LEAVING_NONE, CHUNKS_BEFORE_END, CHUNKS_TOLD_ONCE = range(6)


# what is kept in mind of a request's states at the end of its row in the table, counted from there: how far they were
# given back (before 0.30: one past the last that a chunk began from); the step, counted from 1, that registered
# blocks of it last; and from which block on
STATE_MARK, STATE_STEP, STATE_FROM = -1, -2, -3
STATE_COLUMNS = 3


# what the workload says of each request; the loop only reads it
REQUEST = np.dtype(
    [
        ("arrival_ns", np.int64),  # ascending
        ("prompt", np.int32),  # tokens
        ("output", np.int32),  # tokens it will really produce; not for schedulers' eyes
        ("max_tokens", np.int32),  # the most it asked for; the end is foreseen only if output == max_tokens
        ("priority", np.int32),  # smaller is more urgent
        ("predicted", np.int32),  # output tokens that schedulers may believe
        ("tenant", np.int32),  # index into Replica.tenants
        ("deadline_ns", np.int64),  # when it should be over; NEVER if nobody said
        ("first_content", np.int64),  # where its ids begin in content_ids
        ("content_blocks", np.int32),  # leading KV blocks whose content those ids name, `content_span` blocks each
    ],
    align=True,
)

ABORT = np.dtype([("time_ns", np.int64), ("request", np.int64)])  # in order of time: when clients cancel

TENANT = np.dtype(
    [
        ("service", np.float64),  # virtual token counter
        ("queued", np.int64),  # requests that wait
    ]
)

# where each request stands
PROGRESS = np.dtype(
    [
        ("last_token", np.int64),  # ns, when the latest was out
        ("known", np.int32),  # prompt tokens + output tokens delivered
        ("computed", np.int32),  # tokens whose KV is computed or being computed
        ("placeholders", np.int32),  # sampled tokens in flight, 0 without asynchronous scheduling
        ("slot", np.int32),  # row of the block table, while it holds blocks
        ("held", np.int32),  # blocks held
        ("hashed", np.int32),  # of these, how many leading ones are registered for reuse
        ("preemptions", np.int32),
        ("hit", np.int32),  # prompt tokens found in the prefix cache at first admission
        ("unsettled", np.int32),  # tokens in batches in flight; counted only where layers see windows
        ("junction", np.int32),  # blocks of its prefix that full attention had when it was looked for
        ("prompt", np.int32),  # as in REQUEST, here since each step asks for it
        ("asked_until", np.int32),  # tokens when it has produced all that it asked for
        ("ends_at", np.int32),  # and all that it will
        ("status", np.int8),
        ("phase", np.int8),  # of its life, for the ledger
        ("empty", np.int8),  # drafts that its step in flight checks for nothing; only with asynchronous scheduling
        ("findable", np.int8),  # 1: blocks with content of its own are in the map of content; 0: they are kept off it
    ],
    align=True,
)

# what each request's time went to, in ns: parts are closed at changes of phase, by differences of running sums
LEDGER = np.dtype(
    [
        ("redo_until", np.int32),  # tokens it had computed when it was preempted
        ("scheduled", np.int64),  # start of the first step with some of it
        ("first_token", np.int64),
        ("finish", np.int64),
        ("since_host", np.int64),  # the running sums when the phase began
        ("since_decode", np.int64),
        ("since_extra", np.int64),
        ("skipped", np.int64),  # device time of steps, this phase, that left the running request out
        ("skipped_step", np.int64),  # number of the latest such step, counted from 1
        ("redo_from", np.int64),  # when it was preempted
        ("prefill", np.int64),
        ("decode", np.int64),
        ("stalled", np.int64),
        ("preempted", np.int64),
        ("host", np.int64),
    ],
    align=True,
)

BLOCK = np.dtype(
    [
        ("key", np.int64),  # what content it is registered for; 0: not registered
        ("references", np.int32),
        ("after", np.int32),  # its neighbours in the free queue
        ("before", np.int32),
        ("twin", np.int32),  # the next block registered for the same content; 0: none; OFF_MAP: no search finds it
    ],
    align=True,
)

PLACE = np.dtype([("key", np.int64), ("block", np.int64)])  # of the map from content to the first block that has it

# one request's share of a step
ENTRY = np.dtype(
    [
        ("request", np.int32),
        ("tokens", np.int32),  # scheduled now
        ("before", np.int32),  # computed before
        ("samples", np.int32),  # tokens this step may yield: 0, 1, or with drafts to check 1 more than these
    ]
)

# a step in flight
BATCH = np.dtype(
    [
        ("length", np.int64),  # entries
        ("step", np.int64),  # its number, counted from 1
        ("start", np.int64),  # ns, when the device begins
        ("end", np.int64),  # ns
        ("decode", np.int64),  # ns, what it would take on the device without its prefill chunks
        ("sum_host", np.int64),  # the ledger's running sums at `end`
        ("sum_decode", np.int64),
        ("sum_extra", np.int64),
        ("free", np.int64),  # right after it was planned: free blocks, running, waiting, distinct cached contents
        ("running", np.int64),
        ("waiting", np.int64),
        ("distinct", np.int64),
    ]
)

EVENT = np.dtype([("time_ns", np.int64), ("request", np.int32), ("kind", np.int32)])


class Pool(NamedTuple):
    """KV blocks. Block 0 is never used: it is the head and tail of the free queue, a ring of `after` and `before`."""

    blocks: Records  # BLOCK [blocks]
    places: Records  # PLACE [power of two] open addressing by content; key 0 is empty
    # [slots, groups x blocks a request can hold + state blocks] the blocks of each running request, in order; 0: left
    table: I32
    free_slots: I32  # [slots] a stack
    counts: I64  # [4] FREE_BLOCKS, DISTINCT_KEYS, FREE_SLOTS, NAMED


# NAMED: 1, or 0 as long as nobody can ask which blocks a request holds: then they are counted, and all of the pool but
# `counts` and `free_slots` stays as it was made (`simkit.engine.blocks`)
FREE_BLOCKS, DISTINCT_KEYS, FREE_SLOTS, NAMED = range(4)


class Recorder(NamedTuple):
    """Totals and bounded logs of the whole run."""

    itl: I64  # [bins] histogram over simkit.engine.record.bin_of
    batch_requests: I64  # [max_running + 1] steps by requests in them
    batch_tokens: I64  # [max_num_batched_tokens + 1] steps by tokens in them
    series: F64  # [buckets, 6] per bucket, the columns of simkit.engine.record
    events: Records  # EVENT [event capacity]
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
    LAST_GAP,  # ns, the gap between tokens counted last, and its bin: in a step most are the same
    LAST_BIN,
    BUCKET,  # ns a bucket of the series
    EVENTS,
    EVENTS_LOST,
    COPIED_BLOCKS,  # between device and host by the latest schedule()
    NEW_TOKEN_RATIO,  # sglang: share of the tokens asked for that are expected, in 1e-9; 0: not begun
    FULL_AT,  # sglang: requests running when the last admission failed for want of memory; 0: it did not
    PLACES,  # from here on: ns, when each stage of the pipeline but the last is free
) = range(33)


class Replica(NamedTuple):
    """One replica, whole."""

    limits: Limits
    requests: Records  # REQUEST [n]
    content_ids: I64  # ids >= 0 of equal content, prefix-chained, each for `content_span` blocks
    aborts: Records  # ABORT [cancellations]
    progress: Records  # PROGRESS [n]
    ledger: Records  # LEDGER [n]
    pool: Pool
    entries: Records  # ENTRY [ring, max_running] of the batches in flight
    batches: Records  # BATCH [ring]
    record: Recorder
    running: I32  # [max_running] in order of admission
    waiting: I32  # [n] a queue with head and tail, a heap, or in no order, by `ordering`
    tenants: Records  # TENANT [tenants]
    at: I64  # [PLACES + stages - 1] where it is: clock, counters
