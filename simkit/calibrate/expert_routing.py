"""How many copies of tokens each expert of one GPU gets, under the routings that tables are timed with.

AIConfigurator's collector (github.com/ai-dynamo/aiconfigurator, collector/helper.py, `balanced_logits` and
`_generate_power_law_distribution`) makes them up, and so they are made up here:

- `power_law_A`: loads of experts are drawn from a power law of exponent A between 1 and 0.8 tokens (0.01 and 2, where
  tokens have fewer copies than there are experts), scaled to the copies there are and rounded. An expert gets no more
  than every token; what that takes away, and what rounding left, goes to the GPUs in turn, there to the expert of the
  least load. The GPU timed is the one with the most copies.
- `balanced`: a token's experts lie a fixed stride apart, the next token's are the next ones. Any other name is read as
  this: our own measurements spread tokens evenly.

Their draws are not in the tables: means over draws of our own stand for them.
"""

import math
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TILE_ROWS = (8, 16, 32, 64, 128, 256)  # rows of the tiles that grouped GEMMs are cut in
DRAWN, FEWEST_DRAWS = 512, 4  # loads drawn for a size, of so many experts a time
SEED = 0
_HEIGHTS = np.array(TILE_ROWS)[:, None, None]
_OCTAVES = np.array([rows.bit_length() - 1 for rows in TILE_ROWS])[:, None, None]
PER_OCTAVE = 8  # sizes at which copies are counted; between them they lie on the line
EXACT_COPIES = 4  # an expert: with more of them, what rounding left is too little to be handed out
STEEPEST = 10.0  # exponent that is still drawn
# of what is counted one by one; a stranger's table may name any number
MOST_EXPERTS, MOST_TOP_K = 1 << 13, 1 << 8


class Routing(NamedTuple):
    """Experts spread over `gpus`, and how tokens find them."""

    experts: int
    top_k: int
    gpus: int
    name: str


class Routed(NamedTuple):
    """What falls on the busiest GPU; f64[sizes], and `tiles` f64[len(TILE_ROWS), sizes]."""

    rows: F64  # copies of tokens
    reached: F64  # experts that got any
    tiles: F64  # of each height, the last one of each expert padded


def routed(tokens: F64, routing: Routing) -> Routed:
    """What falls on one GPU of steps of `tokens`, f64[sizes], at least 1."""
    step = 2.0 ** np.maximum(np.floor(np.log2(tokens)) - math.log2(PER_OCTAVE), 0.0)
    low = np.floor(tokens / step) * step
    share = (tokens - low) / step
    nodes, index = np.unique(np.concatenate([low, np.where(share > 0, low + step, low)]), return_inverse=True)
    counted = np.array([_counted(routing, int(node)) for node in nodes])[index]
    found = counted[: len(tokens)] * (1.0 - share)[:, None] + counted[len(tokens) :] * share[:, None]
    return Routed(found[:, 0], found[:, 1], found[:, 2:].T)


def _unlimited(routing: Routing, tokens: int) -> tuple[float, ...]:
    """Rows, experts reached and tiles where there are too many experts to count: the expectation of a random choice."""
    held = routing.experts / routing.gpus
    rows = tokens * routing.top_k / routing.gpus
    reached = held * -math.expm1(tokens * math.log1p(-min(routing.top_k / routing.experts, 1.0 - 1e-12)))
    return rows, reached, *(max(reached, rows / height) for height in TILE_ROWS)


@lru_cache(maxsize=1 << 16)
def _counted(routing: Routing, tokens: int) -> tuple[float, ...]:
    """Rows, experts reached and tiles of one size: means over draws."""
    if routing.experts > MOST_EXPERTS or routing.top_k > MOST_TOP_K:
        return _unlimited(routing, tokens)
    gpus = min(routing.gpus, routing.experts)
    experts = routing.experts // gpus * gpus
    top_k = min(routing.top_k, experts)
    exponent = _exponent(routing.name)
    if exponent is None:
        loads = _even(experts, top_k, tokens)[None, : experts // gpus]
    else:
        every = _drawn(experts, top_k, tokens, gpus, exponent)
        loads = every[np.arange(len(every)), every.sum(axis=2).argmax(axis=1)]
    tiles = ((loads[None] + _HEIGHTS - 1) >> _OCTAVES).sum(axis=(1, 2))  # the heights are powers of two
    return tuple((np.array([loads.sum(), np.count_nonzero(loads), *tiles]) / len(loads)).tolist())


def _exponent(name: str) -> float | None:
    """The exponent of a power law; None for any other routing."""
    found = re.fullmatch(r"power_law_(\d+(?:\.\d+)?)", name)
    return float(found.group(1)) if found and float(found.group(1)) <= STEEPEST else None


def _even(experts: int, top_k: int, tokens: int) -> I64:
    """i64[experts] copies, token i's experts being i, i + stride, ..; few tokens are spread over a stride."""
    stride = math.ceil(experts / top_k)
    first = np.arange(top_k) * stride
    if tokens < stride:
        chosen = np.floor(np.arange(tokens)[:, None] * stride / tokens + first).astype(np.int64) % experts
        return np.bincount(chosen.ravel(), minlength=experts).astype(np.int64)
    rounds, left = divmod(tokens, experts)
    over = (np.arange(experts)[None, :] - first[:, None]) % experts < left
    evenly: I64 = top_k * rounds + over.sum(axis=0)
    return evenly


def _drawn(experts: int, top_k: int, tokens: int, gpus: int, exponent: float) -> I64:
    """i64[draws, gpus, experts of each] copies."""
    copies = tokens * top_k
    whole = _rounded(experts, copies, tokens, exponent)
    draws = len(whole)
    each = whole.reshape(draws * gpus, experts // gpus)
    if int(whole.max()) > tokens:
        over = np.maximum(whole - tokens, 0).sum(axis=1)
        each = _filled(np.minimum(each, tokens), _in_turn(over, gpus))
    elif copies > EXACT_COPIES * experts:
        return each.reshape(draws, gpus, -1)
    missing = copies - each.reshape(draws, -1).sum(axis=1)
    if (missing > 0).any():
        each = _filled(each, _in_turn(np.maximum(missing, 0), gpus))
    if (missing < 0).any():
        # taking from the largest is giving to the smallest of what is missing to `tokens`
        each = tokens - _filled(tokens - each, _in_turn(np.maximum(-missing, 0), gpus))
    return np.clip(each, 0, tokens).reshape(draws, gpus, -1)


@lru_cache(maxsize=64)
def _rounded(experts: int, copies: int, tokens: int, exponent: float) -> I64:
    """i64[draws, experts] loads drawn from the power law, in whole copies; their sums are near `copies`."""
    uniform = np.random.default_rng(SEED).random((max(FEWEST_DRAWS, DRAWN // experts), experts))
    low, high = (1.0, max(0.8 * tokens, 1.0)) if copies > experts else (0.01, 2.0)
    power = 1.0 - exponent
    if abs(power) < 1e-9:
        loads = low * (high / low) ** uniform
    else:
        loads = ((high**power - low**power) * uniform + low**power) ** (1.0 / power)
    return np.asarray(np.round(loads / loads.sum(axis=1, keepdims=True) * copies), np.int64)


def _in_turn(copies: I64, gpus: int) -> I64:
    """i64[draws * gpus]: `copies`, i64[draws], dealt to GPUs one by one."""
    each = copies[:, None] // gpus + (np.arange(gpus)[None, :] < (copies % gpus)[:, None])
    return np.asarray(each.ravel(), np.int64)


def _filled(loads: I64, more: I64) -> I64:
    """i64[n, experts] loads after `more`, i64[n], were given one by one to the smallest."""
    rising = np.sort(loads, axis=1)
    lifting = np.arange(1, loads.shape[1] + 1) * rising - np.cumsum(rising, axis=1)  # the j smallest to the j-th
    lifted = (lifting <= more[:, None]).sum(axis=1)
    top = (np.arange(len(loads)), lifted - 1)
    left = more - lifting[top]
    level = (rising[top] + left // lifted)[:, None]
    low = loads <= level
    one_more = low & (np.cumsum(low, axis=1) <= (left % lifted)[:, None])
    return np.asarray(np.maximum(loads, level) + one_more, np.int64)
