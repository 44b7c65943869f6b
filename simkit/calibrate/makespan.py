"""What a ragged batch costs beyond an even one: its work list run on the chip's multiprocessors.

A decode kernel runs one program a request, KV head and split; a program costs a constant plus its tiles. Programs start
in their order on the first free slot, as the hardware's block scheduler does, and the batch ends with the last. Those
that run at once share the memory's bandwidth, so what is left over at the end runs faster. The factor is that end over
the end of an even batch of the same size and sum; only ratios matter, so costs are in tiles.
"""

import heapq
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TILE_TOKENS = 32
MOST_PROGRAMS = 20_000  # of one batch that are listed; a larger batch fills the chip evenly


class Raggedness(NamedTuple):
    """How a kernel cuts its work."""

    start_tiles: float  # what a program costs beside its tiles
    slots: int  # programs that run at once on one multiprocessor
    split_tokens: int  # a request is cut into parts of at least so many tokens; 0 never
    fitted_on: int  # ragged batches; 0 says that the constants are assumed
    alone: float = 1.0  # times as fast as among all does a program run alone


# Vidur's A100: FlashAttention 2 takes 2.7 us for a tile of 128 tokens in four programs, 8.2 us in 216 at once
ALONE = 3.0
# Assumed where no ragged batch was measured: two programs at once, parts of 512 tokens as long as slots are free.
EVEN = Raggedness(start_tiles=2.0, slots=2, split_tokens=512, fitted_on=0, alone=ALONE)

_START = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
PADDED = 1 << 20  # slots for everything: all requests take as long as the longest, as in a batch padded to it
_SLOTS = (1, 2, 4, 8, PADDED)
_SPLIT = (0, 128, 256, 512, 1024, 2048)


def skew(contexts: I64, kv_heads: int, multiprocessors: int, how: Raggedness) -> float:
    """The time of a batch of these lengths (i64[requests]) over that of an even one, at least 1."""
    if len(contexts) < 2 or contexts.min() == contexts.max() or len(contexts) * kv_heads > MOST_PROGRAMS:
        return 1.0
    even = np.full(len(contexts), contexts.mean())
    slots = multiprocessors * how.slots
    return max(1.0, end_tiles(contexts.astype(float), kv_heads, slots, how) / end_tiles(even, kv_heads, slots, how))


def fit_raggedness(batches: Sequence[I64], kv_heads: I64, factors: F64, multiprocessors: int) -> Raggedness:
    """The cutting that explains measured factors best: least mean absolute log error over a grid of constants."""
    best, least = EVEN, np.inf
    for start, slots, split, alone in product(_START, _SLOTS, _SPLIT, (1.0, ALONE)):
        if slots == PADDED and alone > 1.0:
            continue  # slots for everything: nobody waits, and all ends with the longest either way
        how = Raggedness(start, slots, split, len(batches), alone)
        said = [skew(batch, int(heads), multiprocessors, how) for batch, heads in zip(batches, kv_heads, strict=True)]
        off = float(np.abs(np.log(np.array(said) / factors)).mean())
        if off < least:
            best, least = how, off
    return best


def end_tiles(contexts: F64, kv_heads: int, slots: int, how: Raggedness) -> float:
    """When the last program of a batch of these lengths (f64[requests]) ends, in tiles; `slots` run at once."""
    costs = _programs(contexts, kv_heads, slots, how)
    if len(costs) <= slots:
        return _end_at_once(costs, slots, how.alone)
    if how.alone == 1.0:
        free = [0.0] * slots
        for cost in costs:
            heapq.heapreplace(free, free[0] + float(cost))
        return max(free)
    # all slots are busy, at speed 1, until nobody waits; what is left then runs at once
    ends = costs[:slots].tolist()
    heapq.heapify(ends)
    for cost in costs[slots:]:
        start = heapq.heappop(ends)
        heapq.heappush(ends, start + float(cost))
    last_start = float(min(ends))
    return last_start + _end_at_once(np.array(ends) - last_start, slots, how.alone)


def _end_at_once(costs: F64, slots: int, alone: float) -> float:
    """When programs that all run from the start end: n of them at min(alone, slots / n) each."""
    rising = np.sort(costs)
    running = len(rising) - np.arange(len(rising))
    return float((np.diff(rising, prepend=0.0) / np.minimum(alone, slots / running)).sum())


def _programs(contexts: F64, kv_heads: int, slots: int, how: Raggedness) -> F64:
    """The cost of every program, in launch order: request by request, its heads, its splits."""
    parts = np.ones(len(contexts))
    if how.split_tokens:
        wanted = max(1.0, slots / (len(contexts) * kv_heads))  # as many as fill the chip once
        # a long request is cut finer in proportion, so that its parts end with the others
        parts = np.clip(np.ceil(wanted * contexts / contexts.mean()), 1, np.ceil(contexts / how.split_tokens))
    tiles = np.ceil(contexts / parts / TILE_TOKENS)
    return np.repeat(how.start_tiles + tiles, (parts * kv_heads).astype(np.int64))
