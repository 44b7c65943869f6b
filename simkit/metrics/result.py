"""What a run returns: plain values, before anything is averaged, drawn or written."""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
I8 = NDArray[np.int8]
F64 = NDArray[np.float64]


class Status(IntEnum):
    """How a request ended."""

    UNFINISHED = 0  # the run was interrupted or stopped before its last token
    FINISHED = 1
    REJECTED = 2  # it could never run: prompt too long for the model's context or for the whole KV cache; a fleet: 429
    TIMED_OUT = 3  # in a fleet: its client gave up, or its deadline passed while it waited
    FAILED = 4  # in a fleet: its replica was lost, and nobody tried again


WATERFALL = (
    "front_end_ns",
    "queue_ns",
    "prefill_ns",
    "decode_ns",
    "stalled_ns",
    "preempted_ns",
    "host_ns",
    "transfer_ns",
)
"""The parts of a request's life, in the order drawn; for a finished request they sum exactly to its E2E latency."""


@dataclass(frozen=True)
class RequestColumns:
    """One entry a request, in the workload's order. Times are int64 ns from the workload's start.

    A time is meaningful only where `status` says it happened (`first_token_ns` also for an unfinished request with
    `generated_tokens` >= 1); elsewhere it is 0.
    """

    request_id: tuple[str, ...] | None  # None: the row numbers
    status: I8
    arrival_ns: I64
    scheduled_ns: I64  # start of the first step that computed some of it
    first_token_ns: I64  # when its client has it, as `finish_ns`; the engine had it `front_end_ns` before
    finish_ns: I64
    prompt_tokens: I32
    output_tokens: I32  # asked
    generated_tokens: I32  # delivered: output_tokens when finished
    hit_tokens: I32  # prompt tokens found in the prefix cache at first admission
    preemptions: I32
    front_end_ns: I64  # HTTP, tokenisation and hand-over between processes, there and back
    queue_ns: I64  # from arrival to `scheduled_ns`
    prefill_ns: I64  # device time of steps while its own prompt was being computed
    decode_ns: I64  # device time of the decode share of steps while it decoded
    stalled_ns: I64  # device time that others' prefill added to steps while it decoded, or steps that left it out
    preempted_ns: I64  # from a preemption until all that it lost was computed again
    host_ns: I64  # time between steps in which the device waited for the host
    transfer_ns: I64  # its KV on a link: from prefill to decode, or from a slower tier

    def __len__(self) -> int:
        return len(self.status)


@dataclass(frozen=True)
class Series:
    """The replica over time, in equal buckets; each value is a time-weighted mean over the bucket, 0 where idle."""

    bucket_ns: int
    running: F64  # [buckets] requests admitted
    waiting: F64  # [buckets] requests queued (those preempted included)
    kv_used: F64  # [buckets] share, 0 to 1, of the KV blocks held by requests
    tokens_per_s: F64  # [buckets] tokens computed, prompt and output
    preemptions: I64  # [buckets] count
    busy: F64  # [buckets] share of the time in which a step ran

    def start_s(self) -> F64:
        """[buckets] s: where each bucket begins."""
        return np.arange(len(self.running), dtype=np.float64) * (self.bucket_ns / 1e9)


class EventKind(IntEnum):
    """A change in a request's life, as logged for timelines."""

    ARRIVED = 0
    SCHEDULED = 1  # first admission, or re-admission after preemption
    FIRST_TOKEN = 2
    PREEMPTED = 3
    FINISHED = 4


@dataclass(frozen=True)
class Events:
    """The first changes in the requests' lives, in time order; `complete` tells whether the log held them all."""

    time_ns: I64
    request: I64  # row
    kind: I8  # EventKind
    complete: bool


@dataclass(frozen=True)
class Histogram:
    """Counts over the geometric grid of `simkit.models.steptables` (8 or more points an octave), with an exact mean."""

    lower: I64  # [bins] lower edge of each bin; the upper edge is the next one's lower
    count: I64  # [bins]
    total: int  # exact sum of the values
    maximum: int

    def mean(self) -> float:
        """The exact mean; 0.0 when empty."""
        entries = int(self.count.sum())
        return self.total / entries if entries else 0.0

    def quantile(self, q: float) -> float:
        """The q-quantile, 0 <= q <= 1, linear within its bin; 0.0 when empty."""
        cumulative = np.cumsum(self.count)
        if not len(cumulative) or cumulative[-1] == 0:
            return 0.0
        rank = q * int(cumulative[-1])
        i = int(np.searchsorted(cumulative, rank, side="left"))
        i = max(i, int(np.flatnonzero(self.count)[0]))
        upper = float(self.lower[i + 1]) if i + 1 < len(self.lower) else float(self.maximum)
        upper = min(upper, float(self.maximum))
        before = float(cumulative[i] - self.count[i])
        low = float(self.lower[i])
        if upper - low <= 1.0:  # a bin of one whole number: the tokens of a check come 0 ns after one another
            return low
        return low + max(0.0, upper - low) * (rank - before) / float(self.count[i])


@dataclass(frozen=True)
class RunResult:
    """Everything one replica did with one workload."""

    requests: RequestColumns
    series: Series
    events: Events
    itl: Histogram  # ns between consecutive tokens of a request, pooled over all requests
    batch_requests: Histogram  # requests in a step
    batch_tokens: Histogram  # tokens in a step
    steps: int
    busy_ns: int  # time in which a step was under way
    end_ns: int  # when the last step ended
    computed_tokens: int  # tokens computed, recomputed ones included
    recomputed_tokens: int  # tokens computed again after a preemption
    blocks: int  # KV blocks of the replica
    blocks_free_at_end: int
    complete: bool = True  # False: interrupted, the rest of the workload was not served
    notes: tuple[str, ...] = field(default=())
