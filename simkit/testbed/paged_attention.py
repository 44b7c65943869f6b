"""Attention over a paged KV cache, in plain torch: decodes of like context side by side, each chunk by itself.

Shapes: t tokens in the step, H query heads, K KV heads, g = H / K, d head_dim.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from simkit.engine.state import I64
from simkit.testbed.inputs import Chunk, Decodes, StepInputs
from simkit.testbed.shape import DecoderShape
from simkit.testbed.torch_import import torch

LONGEST_TO_SHORTEST = 1.5  # in blocks, of decodes side by side: padding costs half of their time at most


class KVCache(NamedTuple):
    """The pool that the engine's block tables point into; block 0 belongs to nobody."""

    keys: torch.Tensor  # [layers, blocks, block_size, K, d]
    values: torch.Tensor


class Part(NamedTuple):
    """Rows of a step whose attention is one call; n requests with m queries each."""

    rows: torch.Tensor  # i64[n m]
    blocks: torch.Tensor  # i64[n, blocks]
    seen: torch.Tensor  # bool[n, 1, 1, m, blocks * block_size] which keys each query may see


def new_cache(
    shape: DecoderShape, num_blocks: int, block_size: int, dtype: str = "float32", device: str = "cpu"
) -> KVCache:
    """An empty pool of `num_blocks` blocks of `block_size` tokens."""
    size = (shape.layers, num_blocks, block_size, shape.kv_heads, shape.head_dim)
    kind = getattr(torch, dtype)
    return KVCache(torch.zeros(size, dtype=kind, device=device), torch.zeros(size, dtype=kind, device=device))


def write_kv(cache: KVCache, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Put [t, K, d] keys and values of a layer at the tokens' slots: block * block_size + offset."""
    cache.keys[layer].flatten(0, 1)[slots] = keys
    cache.values[layer].flatten(0, 1)[slots] = values


def attention_parts(step: StepInputs, block_size: int, device: torch.device) -> tuple[Part, ...]:
    """The step's attention as few calls, the same for all layers."""
    parts = [_decode_part(decodes, block_size) for decodes in alike(step.decodes)]
    parts += [_chunk_part(chunk, block_size) for chunk in step.chunks]
    return tuple(Part(*(tensor.to(device) for tensor in part)) for part in parts)


def alike(decodes: Decodes) -> Iterator[Decodes]:
    """Decodes in groups whose contexts differ little, so that padding does not cost more than the work."""
    if not len(decodes.rows):
        return
    order = np.argsort(decodes.context, kind="stable")
    context = decodes.context[order]
    first = 0
    for i in range(1, len(order) + 1):
        # below 64 tokens a call of its own costs more than padding
        if i == len(order) or context[i] > LONGEST_TO_SHORTEST * max(int(context[first]), 64):
            group = order[first:i]
            yield Decodes(decodes.rows[group], decodes.blocks[group], decodes.context[group])
            first = i


def _decode_part(decodes: Decodes, block_size: int) -> Part:
    reach = -(-int(decodes.context.max()) // block_size)
    seen = np.arange(reach * block_size) < decodes.context[:, None]
    return _part(decodes.rows, decodes.blocks[:, :reach], seen[:, None])


def _chunk_part(chunk: Chunk, block_size: int) -> Part:
    position = chunk.past + np.arange(chunk.tokens)
    seen = np.arange(len(chunk.blocks) * block_size) <= position[:, None]
    return _part(np.arange(chunk.first, chunk.first + chunk.tokens), chunk.blocks[None], seen[None])


def _part(rows: I64, blocks: I64, seen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Part:
    """From arrays; `seen` is [n, m, keys]."""
    mask = torch.from_numpy(np.ascontiguousarray(seen))[:, None, None]
    return Part(torch.from_numpy(np.ascontiguousarray(rows)), torch.from_numpy(np.ascontiguousarray(blocks)), mask)


def attend(cache: KVCache, layer: int, q: torch.Tensor, parts: tuple[Part, ...]) -> torch.Tensor:
    """[t, H, d] softmax(q k^T / sqrt(d)) v of every token over its own request's tokens up to itself."""
    mixed = torch.empty_like(q)
    for part in parts:
        mixed[part.rows] = _attend(cache.keys[layer], cache.values[layer], q[part.rows], part)
    return mixed


def _attend(keys: torch.Tensor, values: torch.Tensor, q: torch.Tensor, part: Part) -> torch.Tensor:
    """[n m, H, d]; the heads of a group share the keys of their KV head, which are read once."""
    n, queries = part.seen.shape[0], part.seen.shape[3]
    k = keys[part.blocks].flatten(1, 2).transpose(1, 2)  # [n, K, tokens, d]
    v = values[part.blocks].flatten(1, 2).transpose(1, 2)
    grouped = q.view(n, queries, k.shape[1], -1, q.shape[-1]).permute(0, 2, 3, 1, 4)  # [n, K, g, m, d]
    mask = part.seen.expand(-1, -1, grouped.shape[2], -1, -1)  # [n, 1, g, m, tokens]
    # a group's queries are rows of one product with its keys
    rows = grouped.flatten(2, 3)  # [n, K, g m, d]
    mixed = torch.nn.functional.scaled_dot_product_attention(rows, k, v, attn_mask=mask.flatten(2, 3))
    return mixed.unflatten(2, (-1, queries)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)
