"""How FlashAttention cuts the contexts of a batch of decodes, and what that costs where one context is much longer.

One program computes one KV head of one request, or a part of its context where whole contexts would leave
multiprocessors idle. The number of parts is one for the whole batch (`num_splits_heuristic` of FlashAttention 2 and
3): none if whole contexts fill 80 % of the chip, else the fewest that come within 85 % of the fullest last wave.
FlashAttention 2 launches just these programs, so that a batch takes at least as long as the longest request's part.
FlashAttention 3 in vLLM, FlashInfer and SGLang's Triton kernels cut each request by its own length instead.

FlashAttention 2 cuts only where it packs the query heads of a KV head together (`seqlenq_ngroups_swapped` in
flash_api.cpp of vLLM's fork): where every query head has a KV head of its own, contexts stay whole. In a CUDA graph the
number of parts is the one of its capture: of the padded batch, at the longest context the model may have
(`max_seq_len = max_model_len` in gpu_model_runner.py).
"""

import numpy as np
from numpy.typing import NDArray

from simkit.models.architecture import Architecture, GroupedAttention
from simkit.models.captures import padded_tokens
from simkit.models.device import Device
from simkit.models.layout import Layout, kv_heads_per_gpu
from simkit.models.precision import Precision
from simkit.models.steptables import grid_values

F64 = NDArray[np.float64]

MOST_PARTS = 128
FULL, NEARLY = 0.8, 0.85
ROWS = 64  # query heads of one KV head that one program computes together
# FlashAttention 2.6 and later, vLLM's, counts two programs a multiprocessor (set_params_splitkv in flash_api.cpp)
PROGRAMS_EACH = 2
# where vLLM takes FlashAttention 2: not on Hopper, where it takes 3 (fa_utils.py), nor on data-centre Blackwell
GENERATIONS = (8, 12)  # of compute capability: Ampere and Ada, Blackwell of workstations
TILE_BYTES = 64 * 1024  # keys and values of 128 tokens and one head of 128 at 16 bits
# Vidur's A100, FlashAttention 2: 2.7 us for such a tile in four programs; among 88 to 108, one a multiprocessor, 3.8
# to 4.2 us, where memory is the limit. Other chips are taken to be no faster: latency decides, not their bandwidth
TILE_NS = 2_700.0


def tile_tokens(head_dim: int) -> int:
    """Tokens of one tile of keys (`block_n` of FlashAttention 2's split kernels)."""
    return 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64


def split_count(whole: F64, tiles: F64, sms: int) -> F64:
    """Parts of each context by FlashAttention's rule, for `whole` programs of `tiles` tiles each, f64[..].

    `sms` is how many programs the rule believes to run at once.
    """
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


def cuts_batches_alike(device: Device, kv: Precision) -> bool:
    """Whether vLLM's decode kernel there is FlashAttention 2, which knows no KV cache of 8 bits."""
    capability = device.compute_capability
    return capability is not None and int(capability.value) in GENERATIONS and kv in ("bf16", "fp16")


def alone_ns(
    arch: Architecture,
    layout: Layout,
    device: Device,
    max_requests: int,
    max_context: int,
    captures: tuple[int, ...] = (),
) -> F64:
    """f64[grid(requests), grid(longest context)]: how long the longest request's programs take by themselves, in ns.

    Of full attention in all layers, parts of one context running at once. Latent attention, which other kernels
    compute, and windows, which no context passes, count nothing. `captures` are the batches that have a CUDA graph.
    """
    rows, columns = grid_values(max_requests), grid_values(max_context)
    captured = rows <= max(captures, default=0)
    padded = padded_tokens(rows, captures).astype(np.float64)[:, None]
    context = columns[None, :].astype(np.float64)
    width = np.where(captured[:, None], float(max_context), context)
    sms = PROGRAMS_EACH * device.multiprocessors.value
    total = np.zeros(width.shape)
    for attention, count in _grouped(arch, windowed=False):
        heads, kv_heads = _heads(attention, layout)
        tile = tile_tokens(attention.head_dim)
        parts = np.ones(width.shape)
        if heads > kv_heads:
            whole = np.maximum(padded, 1.0) * kv_heads * np.ceil(heads / kv_heads / ROWS)
            wide = np.ceil(np.maximum(width, 1.0) / tile)
            parts = split_count(np.broadcast_to(whole, width.shape), wide, sms)
        total += count * np.ceil(np.ceil(context / tile) / parts) * _tile_ns(attention)
    return np.where((rows[:, None] > 0) & (context > 0), total, 0.0)


def whole_ns(arch: Architecture, layout: Layout, windowed: bool, requests: F64, contexts: F64) -> F64:
    """How long an even batch takes at least where contexts stay whole, of the layers with or without a window, in ns.

    `requests` and `contexts`, tokens in sum, are f64 of shapes that go together. 0 where contexts are cut.
    AIConfigurator's times of FlashAttention 2 show it: with 8 heads of 8 at 4,096 tokens, 1 to 8 requests take 102 to
    109 us on an A100, and one 81 us on an L40S; with 32 heads of 8, which are cut, one request takes 30 and 22 us.
    """
    mean = contexts / np.maximum(requests, 1.0)
    total = np.zeros(mean.shape)
    for attention, count in _grouped(arch, windowed):
        heads, kv_heads = _heads(attention, layout)
        if heads == kv_heads:
            total += count * np.ceil(mean / tile_tokens(attention.head_dim)) * _tile_ns(attention)
    return total


def full_attention_layers(arch: Architecture) -> int:
    """How many layers `alone_ns` is of."""
    return sum(count for _, count in _grouped(arch, windowed=False))


def _grouped(arch: Architecture, windowed: bool) -> list[tuple[GroupedAttention, int]]:
    """The kinds of layers with grouped attention, with or without a window, and how many there are of each."""
    kinds = [(layer.attention, count) for layer, count in arch.kinds.items()]
    return [
        (attention, count)
        for attention, count in kinds
        if isinstance(attention, GroupedAttention) and (attention.window_tokens is not None) == windowed
    ]


def _heads(attention: GroupedAttention, layout: Layout) -> tuple[int, int]:
    """Query and KV heads of one GPU."""
    kv_heads = kv_heads_per_gpu(attention, layout.tensor)
    return max(attention.heads // layout.tensor, kv_heads), kv_heads


def _tile_ns(attention: GroupedAttention) -> float:
    return TILE_NS * tile_tokens(attention.head_dim) * 4 * attention.head_dim / TILE_BYTES
