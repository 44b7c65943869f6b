"""Attention over a paged KV cache, in plain torch: decodes as one padded batch, each prefill chunk by itself.

Shapes: t tokens in the step, H query heads, K KV heads, g = H / K, d head_dim.
"""

from typing import NamedTuple

from simkit.testbed.inputs import Chunk, Decodes, StepInputs
from simkit.testbed.shape import DecoderShape
from simkit.testbed.torch_import import torch


class KVCache(NamedTuple):
    """The pool that the engine's block tables point into; block 0 belongs to nobody."""

    keys: torch.Tensor  # [layers, blocks, block_size, K, d]
    values: torch.Tensor


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


def attend(cache: KVCache, layer: int, q: torch.Tensor, step: StepInputs) -> torch.Tensor:
    """[t, H, d] softmax(q k^T / sqrt(d)) v of every token over its own request's tokens up to itself."""
    mixed = torch.empty_like(q)
    if len(step.decodes.rows):
        rows = torch.from_numpy(step.decodes.rows).to(q.device)
        mixed[rows] = _attend_decodes(cache, layer, q[rows], step.decodes)
    for chunk in step.chunks:
        part = slice(chunk.first, chunk.first + chunk.tokens)
        mixed[part] = _attend_chunk(cache, layer, q[part], chunk)
    return mixed


def _attend_decodes(cache: KVCache, layer: int, q: torch.Tensor, decodes: Decodes) -> torch.Tensor:
    """[n, H, d] for n requests with one new token each; the heads of a group are the queries of their KV head."""
    blocks = torch.from_numpy(decodes.blocks).to(q.device)  # [n, most blocks]
    k = cache.keys[layer][blocks].flatten(1, 2).transpose(1, 2)  # [n, K, most tokens, d]
    v = cache.values[layer][blocks].flatten(1, 2).transpose(1, 2)
    context = torch.from_numpy(decodes.context).to(q.device)
    seen = torch.arange(k.shape[2], device=q.device) < context[:, None]
    grouped = q.unflatten(1, (k.shape[1], -1))  # [n, K, g, d]
    mixed = torch.nn.functional.scaled_dot_product_attention(grouped, k, v, attn_mask=seen[:, None, None, :])
    return mixed.flatten(1, 2)


def _attend_chunk(cache: KVCache, layer: int, q: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """[tokens, H, d] for one request's chunk, causal over what it computed before and the chunk itself."""
    blocks = torch.from_numpy(chunk.blocks).to(q.device)
    total = chunk.past + chunk.tokens
    k = cache.keys[layer][blocks].flatten(0, 1)[:total].transpose(0, 1)  # [K, total, d]
    v = cache.values[layer][blocks].flatten(0, 1)[:total].transpose(0, 1)
    position = chunk.past + torch.arange(chunk.tokens, device=q.device)
    seen = torch.arange(total, device=q.device) <= position[:, None]  # [tokens, total]
    grouped = q.unflatten(1, (k.shape[0], -1)).permute(1, 2, 0, 3)  # [K, g, tokens, d]
    mixed = torch.nn.functional.scaled_dot_product_attention(
        grouped, k[:, None].expand(-1, grouped.shape[1], -1, -1), v[:, None].expand(-1, grouped.shape[1], -1, -1), seen
    )
    return mixed.permute(2, 0, 1, 3).flatten(1, 2)
