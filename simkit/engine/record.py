"""Bounded logs of a run: histograms, a time series whose buckets double when they are full, the first events."""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from simkit.compiled import compiled, inlined
from simkit.engine.state import (
    BUCKET,
    EVENTS,
    EVENTS_LOST,
    FREE_BLOCKS,
    PREEMPTED_NOW,
    RUNNING_COUNT,
    WAITING_COUNT,
    Replica,
)

BINS_PER_OCTAVE = 128  # a bin is at most 0.8 % wide
BINS = 57 * BINS_PER_OCTAVE  # up to 2^63 ns
BUCKETS = 2048
FIRST_BUCKET_NS = 1_000_000
EVENT_CAPACITY = 1 << 17

# columns of the series
RUNNING_INTEGRAL, WAITING_INTEGRAL, BLOCKS_INTEGRAL, TOKENS, PREEMPTIONS, BUSY_TIME = range(6)


@compiled
def bin_of(value: int) -> int:
    """The histogram bin of a value >= 0: exact below 128, then 128 bins an octave."""
    if value < BINS_PER_OCTAVE:
        return value
    octave = math.frexp(float(value))[1] - 8
    # the conversion to float may round up to the next octave
    if (value >> octave) < BINS_PER_OCTAVE:
        octave -= 1
    return (octave << 7) + (value >> octave)


@cache
def bin_edges() -> NDArray[np.int64]:
    """[BINS] the lowest value of each bin; read-only, since all histograms share it."""
    index = np.arange(BINS, dtype=np.int64)
    octave = np.maximum(index // BINS_PER_OCTAVE - 1, 0)
    edges = np.where(index < BINS_PER_OCTAVE, index, (index - (octave << 7)) << octave)
    edges.flags.writeable = False
    return edges


@inlined
def log_event(r: Replica, time: int, request: int, kind: int) -> None:
    """Append to the event log while there is room."""
    i = r.at[EVENTS]
    if i >= len(r.record.events):
        r.at[EVENTS_LOST] += 1
        return
    r.record.events[i].time_ns = time
    r.record.events[i].request = request
    r.record.events[i].kind = kind
    r.at[EVENTS] = i + 1


@inlined
def log_step(r: Replica, begin: int, end: int, busy: int, tokens: int) -> None:
    """Add a step that lasted from `begin` to `end` to the series, spread over the buckets it touches."""
    if end <= begin:
        return
    series = r.record.series
    while end >= r.at[BUCKET] * len(series):
        _halve(r)
    width = r.at[BUCKET]
    used = len(r.pool.blocks) - 1 - r.pool.counts[FREE_BLOCKS]
    first = begin // width
    last = (end - 1) // width
    for bucket in range(first, last + 1):
        overlap = min(end, (bucket + 1) * width) - max(begin, bucket * width)
        share = overlap / (end - begin)
        series[bucket, RUNNING_INTEGRAL] += float(r.at[RUNNING_COUNT]) * overlap
        series[bucket, WAITING_INTEGRAL] += float(r.at[WAITING_COUNT]) * overlap
        series[bucket, BLOCKS_INTEGRAL] += float(used) * overlap
        series[bucket, TOKENS] += tokens * share
        series[bucket, BUSY_TIME] += busy * share
    series[first, PREEMPTIONS] += r.at[PREEMPTED_NOW]


@inlined
def _halve(r: Replica) -> None:
    """Merge neighbouring buckets, so that the series reaches twice as far."""
    series = r.record.series
    half = len(series) // 2
    for i in range(half):
        for column in range(series.shape[1]):
            series[i, column] = series[2 * i, column] + series[2 * i + 1, column]
    series[half:] = 0.0
    r.at[BUCKET] *= 2
