"""How a decode attention kernel cuts a batch into programs, and how these share the chip.

A program computes one KV head of one request, or a part of its context where whole contexts would leave multiprocessors
idle. The number of parts is FlashAttention's rule (`num_splits_heuristic` of FlashAttention 2 and
3): none if whole contexts fill 80 % of the chip, else the fewest that come within 85 % of the fullest last wave.
Whoever prepares page tables for contexts longer than the batch's has parts of the longest one, and some stay empty.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MOST_PARTS = 128
FULL, NEARLY = 0.8, 0.85
AT_ONCE = 2  # programs that one multiprocessor holds
ROWS = 64  # query heads of one KV head that one program computes together


class Programs(NamedTuple):
    """The programs of batches, f64[..] each."""

    parts: F64  # of one context, empty ones counted
    busy_parts: F64  # those with tokens
    launched: F64  # programs in sum
    busy: F64  # those with tokens
    tiles: F64  # of the longest program
    paired: F64  # 1 where busy programs of one wave share a multiprocessor, else 0
    waves: F64  # of busy programs


def tile_tokens(head_dim: int) -> int:
    """Tokens of one tile of keys (`block_n` of FlashAttention 2's split kernels)."""
    return 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64


def programs(batch: F64, context: F64, width: F64, heads: F64, kv_heads: F64, head_dim: int, sms: int) -> Programs:
    """The programs of `batch` requests of `context` tokens each, page tables being `width` >= context tokens wide.

    All are f64[..] of one shape, `sms` the chip's multiprocessors.
    """
    tile = tile_tokens(head_dim)
    tiles, wide = np.ceil(context / tile), np.ceil(width / tile)
    whole = batch * kv_heads * np.ceil(heads / kv_heads / ROWS)
    parts = split_count(whole, wide, sms)
    part_tiles = np.ceil(wide / parts)
    busy_parts = np.ceil(tiles / part_tiles)
    launched, busy = whole * parts, whole * busy_parts
    waves = np.ceil(busy / (AT_ONCE * sms))
    last = busy - AT_ONCE * sms * (waves - 1.0)
    # program i shares a multiprocessor with i + sms; of split contexts every `parts`th program is a first part
    apart = np.mod(sms, parts)
    meet = (apart == 0) | (apart < busy_parts) | (parts - apart < busy_parts)
    paired = np.where(parts > 1, (launched > sms) & meet, last > sms).astype(np.float64)
    return Programs(parts, busy_parts, launched, busy, np.minimum(tiles, part_tiles), paired, waves)


def split_count(whole: F64, tiles: F64, sms: int) -> F64:
    """Parts of each context by FlashAttention's rule, for `whole` programs of `tiles` tiles each, f64[..]."""
    out = np.ones(whole.shape)
    few = whole < FULL * sms
    if not few.any():
        return out
    cases, index = np.unique(np.stack([whole[few], tiles[few]], axis=1), axis=0, return_inverse=True)
    parts = np.arange(1, min(MOST_PARTS, sms) + 1, dtype=np.float64)
    waves = cases[:, :1] * parts / sms
    part_tiles = np.ceil(cases[:, 1:] / parts)
    # a number of parts that leaves each as long as one fewer would is not considered
    shorter = np.concatenate([np.ones((len(cases), 1), np.bool_), part_tiles[:, 1:] < part_tiles[:, :-1]], axis=1)
    efficiency = np.where(shorter & (parts <= cases[:, 1:]), waves / np.ceil(waves), 0.0)
    best = efficiency.max(axis=1, keepdims=True)
    out[few] = parts[np.argmax(efficiency >= NEARLY * best, axis=1)][index.ravel()]
    return out
