"""Attention over a paged cache as the testbed's decoder runs it on a CPU, set up at a point's sizes.

The calls are those of `simkit/testbed/paged_attention.py`: decodes of like context side by side, each chunk by itself.
Calibration stands below the testbed and cannot import it, so they are repeated here; a test holds the two together.
What is made once a step and serves all layers (which blocks, which keys a query sees) is not timed with a layer.
"""

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from simkit.calibrate.cpu_memory import Arena

I64 = NDArray[np.int64]

BLOCK_TOKENS = 16
MOST_LAYOUTS = 128  # sets of blocks, used in turn
LONGEST_TO_SHORTEST = 1.5  # of decodes side by side, as in the testbed
SHORT_TOKENS = 64

Attend = Callable[[torch.Tensor, torch.Tensor], None]


class CpuCache(NamedTuple):
    """One layer's pool."""

    keys: torch.Tensor  # [blocks, block_size, K, d]
    values: torch.Tensor


class CpuPart(NamedTuple):
    """Rows of a step whose attention is one call; n requests with m queries each."""

    rows: torch.Tensor  # i64[n m]
    blocks: torch.Tensor  # i64[n, blocks]
    seen: torch.Tensor  # bool[n, 1, 1, m, blocks * block_size]


def step_attention(arena: Arena, heads: tuple[int, int], contexts: list[int], chunk: int = 0, past: int = 0) -> Attend:
    """`call(q, mixed)` attends for a step of decodes with these contexts, then a chunk if one is given; [t, H, d].

    `heads` are the KV heads and their size. Each call reads other blocks than those before it, until as much was read
    as in a step.
    """
    kv_heads, head_dim = heads
    lengths = [*contexts, *([chunk + past] if chunk else [])]
    counts = [-(-length // BLOCK_TOKENS) for length in lengths]
    block_bytes = 2 * BLOCK_TOKENS * kv_heads * head_dim * arena.dtype.itemsize
    sets = max(1, min(MOST_LAYOUTS, -(-arena.footprint_bytes // (sum(counts) * block_bytes))))
    keys, values = next(arena.views(2, sets * sum(counts) + 1, BLOCK_TOKENS, kv_heads, head_dim))
    cache = CpuCache(keys, values)
    drawn = np.random.default_rng(len(contexts) + chunk).permutation(sets * sum(counts)) + 1
    layouts = [_layout(contexts, chunk, past, counts, own) for own in np.split(drawn, sets)]
    turn: Iterator[tuple[CpuPart, ...]] = cycle(layouts)

    def call(q: torch.Tensor, mixed: torch.Tensor) -> None:
        for part in next(turn):
            mixed[part.rows] = attend(cache, q[part.rows], part)

    return call


def attend(cache: CpuCache, q: torch.Tensor, part: CpuPart) -> torch.Tensor:
    """[n m, H, d]; the heads of a group share the keys of their KV head, which are read once."""
    n, queries = part.seen.shape[0], part.seen.shape[3]
    k = cache.keys[part.blocks].flatten(1, 2).transpose(1, 2)  # [n, K, tokens, d]
    v = cache.values[part.blocks].flatten(1, 2).transpose(1, 2)
    grouped = q.view(n, queries, k.shape[1], -1, q.shape[-1]).permute(0, 2, 3, 1, 4)  # [n, K, g, m, d]
    mask = part.seen.expand(-1, -1, grouped.shape[2], -1, -1)
    rows = grouped.flatten(2, 3)  # [n, K, g m, d]
    mixed = torch.nn.functional.scaled_dot_product_attention(rows, k, v, attn_mask=mask.flatten(2, 3))
    return mixed.unflatten(2, (-1, queries)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)


def decode_parts(rows: I64, blocks: I64, contexts: I64) -> list[CpuPart]:
    """Decodes in groups whose contexts differ little; `blocks` i64[n, most blocks] is padded with block 0."""
    parts: list[CpuPart] = []
    order = np.argsort(contexts, kind="stable")
    ordered = contexts[order]
    first = 0
    for i in range(1, len(order) + 1):
        if i == len(order) or ordered[i] > LONGEST_TO_SHORTEST * max(int(ordered[first]), SHORT_TOKENS):
            group = order[first:i]
            reach = -(-int(contexts[group].max()) // BLOCK_TOKENS)
            seen = np.arange(reach * BLOCK_TOKENS) < contexts[group][:, None]
            parts.append(_part(rows[group], blocks[group][:, :reach], seen[:, None]))
            first = i
    return parts


def chunk_part(first_row: int, chunk: int, past: int, blocks: I64) -> CpuPart:
    """One request's chunk, causal over what it computed before and the chunk itself; `blocks` i64[blocks]."""
    position = past + np.arange(chunk)
    seen = np.arange(len(blocks) * BLOCK_TOKENS) <= position[:, None]
    return _part(np.arange(first_row, first_row + chunk), blocks[None], seen[None])


def _part(rows: I64, blocks: I64, seen: NDArray[np.bool_]) -> CpuPart:
    """From arrays; `seen` is [n, m, keys]."""
    mask = torch.from_numpy(np.ascontiguousarray(seen))[:, None, None]
    return CpuPart(torch.from_numpy(np.ascontiguousarray(rows)), torch.from_numpy(np.ascontiguousarray(blocks)), mask)


def _layout(contexts: list[int], chunk: int, past: int, counts: list[int], drawn: I64) -> tuple[CpuPart, ...]:
    """A step's parts with the blocks drawn, `counts` a request; block 0 pads the shorter ones."""
    own = np.split(drawn, np.cumsum(counts)[:-1])
    parts: list[CpuPart] = []
    if contexts:
        blocks = np.zeros((len(contexts), max(counts[: len(contexts)])), dtype=np.int64)
        for row, held in zip(blocks, own, strict=False):
            row[: len(held)] = held
        parts += decode_parts(np.arange(len(contexts)), blocks, np.array(contexts, dtype=np.int64))
    if chunk:
        parts.append(chunk_part(len(contexts), chunk, past, own[-1]))
    return tuple(parts)
