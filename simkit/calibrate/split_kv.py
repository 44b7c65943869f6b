"""How a decode attention kernel cuts a batch into programs, and how these share the chip.

The number of parts is FlashAttention's rule (models/flash_attention.py), by the chip's multiprocessors as versions
before 2.6 counted. Whoever prepares page tables for contexts longer than the batch's has parts of the longest one, and
some stay empty.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.models.flash_attention import ROWS, split_count, tile_tokens

F64 = NDArray[np.float64]

AT_ONCE = 2  # programs that one multiprocessor holds


class Programs(NamedTuple):
    """The programs of batches, f64[..] each."""

    parts: F64  # of one context, empty ones counted
    busy_parts: F64  # those with tokens
    launched: F64  # programs in sum
    busy: F64  # those with tokens
    tiles: F64  # of the longest program
    paired: F64  # 1 where busy programs of one wave share a multiprocessor, else 0
    waves: F64  # of busy programs


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
