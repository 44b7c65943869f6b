"""Decode attention over a paged KV cache: one new token a request, split over the context.

Math. For request r and query head h, with key-value head g = h // (q_heads // kv_heads) and n = context_tokens[r]:

    s[t] = scale * q[r, h] . K[t, g],  t = 0 .. n - 1        scores, f32
    out[r, h] = sum_t softmax(s)[t] * V[t, g]                0 where n = 0

Split-KV. A request's context is cut into parts of `split_tokens`. For each part a program computes

    m = max s,  l = sum exp(s - m),  o = sum exp(s - m) V / l,  lse = m + log l

and the reduce kernel adds parts up: out = sum_i w_i o_i / sum_i w_i with w_i = exp(lse_i - max lse). A request has as
many parts as its own context needs, so time follows the total context rather than batch x longest. All softmax
arithmetic is f32 and base 2 (scale * log2 e folded into the scores).

Layout. q and out [requests, q_heads, head_dim] of f32, f16 or bf16, cache as in `paged_cache`; partial results
f32[requests, q_heads, splits, head_dim] and f32[requests, q_heads, splits]. The query heads that share a key-value head
are the rows of one tile (at least 16, the least that tensor cores take), so each key is read once for all of them.

Sources: split-KV is Flash-Decoding (Dao et al., 2023); the packing of a group's heads is that of vLLM's
`triton_unified_attention.py` and SGLang's `decode_attention.py`, a fixed part length SGLang's deterministic mode.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_at_least, check_can_launch, check_tensor
from simkit.kernels.jit import jit
from simkit.kernels.paged_cache import PagedCache, check_cache, check_heads

LOG2_E = math.log2(math.e)
MIN_ROWS = 16  # of a tensor-core tile
MAX_ROWS = 64
MAX_SPLITS = 128
MIN_SPLIT_TOKENS = 256  # a part should read much more than its partial result, two rows, writes
PROGRAMS_PER_SM = 4  # asked of a launch, so that the last wave is a small share of it


class DecodeConfig(NamedTuple):
    """How a decode kernel is compiled."""

    block_tokens: int  # keys a tile
    num_warps: int
    num_stages: int


@jit
def decode_split_kernel(
    q: tl.pointer_type,
    k: tl.pointer_type,
    v: tl.pointer_type,
    page_table: tl.pointer_type,
    context_tokens: tl.pointer_type,
    partial_out: tl.pointer_type,
    partial_lse: tl.pointer_type,
    scale_log2: float,
    split_tokens: int,
    q_stride_request: int,
    q_stride_head: int,
    kv_stride_page: int,
    kv_stride_token: int,
    kv_stride_head: int,
    table_stride: int,
    out_stride_request: int,
    out_stride_head: int,
    out_stride_split: int,
    SPLITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
) -> None:
    """One part of one request's context, for up to ROWS query heads of one key-value head.

    Grid (requests, kv_heads * ROW_BLOCKS, SPLITS). With SPLITS = 1 `partial_out` is the output itself.
    """
    request = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // ROW_BLOCKS
    split = tl.program_id(2)
    context = tl.load(context_tokens + request)
    begin = split * split_tokens
    if SPLITS == 1:
        end = context
    else:
        if begin >= context:
            return
        end = tl.minimum(begin + split_tokens, context)

    row = (tl.program_id(1) % ROW_BLOCKS) * ROWS + tl.arange(0, ROWS)  # [ROWS] head within the group
    head = kv_head * GROUP + row
    dim = tl.arange(0, BLOCK_DIM)
    dim_ok = dim < HEAD_DIM
    query_ok = (row < GROUP)[:, None] & dim_ok[None, :]
    query_at = q + request * q_stride_request + head[:, None] * q_stride_head + dim[None, :]
    query = tl.load(query_at, mask=query_ok, other=0.0)  # [ROWS, BLOCK_DIM]

    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_DIM], tl.float32)
    for first in range(begin, end, BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        token_ok = token < end
        page = tl.load(page_table + request * table_stride + token // PAGE_TOKENS, mask=token_ok, other=0)
        at = page.to(tl.int64) * kv_stride_page + (token % PAGE_TOKENS) * kv_stride_token + kv_head * kv_stride_head
        ok = token_ok[:, None] & dim_ok[None, :]
        keys = tl.load(k + at[:, None] + dim[None, :], mask=ok, other=0.0)  # [BLOCK_TOKENS, BLOCK_DIM]
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale_log2  # [ROWS, BLOCK_TOKENS]
        scores = tl.where(token_ok[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        shrink = tl.exp2(best - new_best)
        weight = tl.exp2(scores - new_best[:, None])
        values = tl.load(v + at[:, None] + dim[None, :], mask=ok, other=0.0)  # [BLOCK_TOKENS, BLOCK_DIM]
        total = total * shrink + tl.sum(weight, 1)
        acc = acc * shrink[:, None] + tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        best = new_best

    # an empty context has total 0 and acc 0: its output is 0
    result = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    out_at = partial_out + request * out_stride_request + head[:, None] * out_stride_head + split * out_stride_split
    tl.store(out_at + dim[None, :], result.to(partial_out.dtype.element_ty), mask=query_ok)
    if SPLITS > 1:
        q_heads = tl.num_programs(1) // ROW_BLOCKS * GROUP
        lse_at = partial_lse + (request * q_heads + head) * SPLITS + split
        tl.store(lse_at, best + tl.log2(total), mask=row < GROUP)


@jit
def decode_reduce_kernel(
    partial_out: tl.pointer_type,
    partial_lse: tl.pointer_type,
    context_tokens: tl.pointer_type,
    out: tl.pointer_type,
    split_tokens: int,
    out_stride_request: int,
    out_stride_head: int,
    SPLITS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    """The parts of one request and query head added up. Grid (requests, q_heads)."""
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    q_heads = tl.num_programs(1)
    context = tl.load(context_tokens + request)
    parts = tl.minimum((context + split_tokens - 1) // split_tokens, SPLITS)
    dim = tl.arange(0, BLOCK_DIM)
    dim_ok = dim < HEAD_DIM
    row = (request * q_heads + head) * SPLITS
    best = float("-inf")
    total = 0.0
    acc = tl.zeros([BLOCK_DIM], tl.float32)
    for part in range(0, parts):
        lse = tl.load(partial_lse + row + part)
        values = tl.load(partial_out + (row + part) * HEAD_DIM + dim, mask=dim_ok, other=0.0)
        new_best = tl.maximum(best, lse)
        shrink = tl.exp2(best - new_best)
        weight = tl.exp2(lse - new_best)
        total = total * shrink + weight
        acc = acc * shrink + weight * values
        best = new_best
    result = acc / tl.where(total > 0.0, total, 1.0)
    at = out + request * out_stride_request + head * out_stride_head + dim
    tl.store(at, result.to(out.dtype.element_ty), mask=dim_ok)


def decode_config(head_dim: int, dtype: torch.dtype) -> DecodeConfig:
    """The configuration of a head size and dtype, such that sm_90 code spills no register (Triton 3.6).

    At head size 128 in 16 bits that is 128 registers and 39 KB of shared memory, room for several programs an SM. f32
    is for checks. Chosen by compiling, not yet by timing.
    """
    if dtype == torch.float32:
        return DecodeConfig(block_tokens=32, num_warps=8, num_stages=2)
    return DecodeConfig(block_tokens=64 if head_dim <= 128 else 32, num_warps=4, num_stages=3)


def tile_rows(group: int) -> int:
    """Rows of a tile for a group of query heads; larger groups take several tiles."""
    return min(MAX_ROWS, max(MIN_ROWS, int(triton.next_power_of_2(group))))


def choose_split_tokens(requests: int, kv_heads: int, max_context_tokens: int, sms: int, block_tokens: int) -> int:
    """Tokens a part, a multiple of a tile: enough parts to fill `sms` processors, none needlessly short."""
    parts = max(1, PROGRAMS_PER_SM * sms // max(1, requests * kv_heads))
    parts = min(parts, MAX_SPLITS, max(1, max_context_tokens // MIN_SPLIT_TOKENS))
    return max(1, math.ceil(max_context_tokens / parts / block_tokens)) * block_tokens


def paged_decode(
    q: torch.Tensor,
    cache: PagedCache,
    max_context_tokens: int,
    scale: float | None = None,
    split_tokens: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one token a request over its context, [requests, q_heads, head_dim] of q's dtype.

    Args:
        q: [requests, q_heads, head_dim], f32, f16 or bf16, last axis contiguous.
        cache: keys and values of the same dtype, see `PagedCache`.
        max_context_tokens: at least the longest context of the batch, known to the host so that it need not wait.
        scale: of the scores; head_dim ** -0.5 if None.
        split_tokens: tokens a part; None chooses by `choose_split_tokens`.
        out: where to write, of q's shape and dtype; made if None.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    check_tensor("q", q, (None, None, None), FLOATS, q.device)
    requests, q_heads, head_dim = q.shape
    check_cache(cache, requests, head_dim, q.dtype, q.device)
    check_can_launch("q", q, decode_split_kernel)
    check_heads(q_heads, cache, head_dim)
    check_at_least("max_context_tokens", max_context_tokens, 0)
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    check_tensor("out", out, tuple(q.shape), (q.dtype,), q.device)
    config = decode_config(head_dim, q.dtype)
    if split_tokens is None:
        split_tokens = choose_split_tokens(
            requests, cache.kv_heads, max_context_tokens, _processors(q.device), config.block_tokens
        )
    check_at_least("split_tokens", split_tokens, 1)
    if requests == 0 or q_heads == 0:
        return out
    splits = max(1, math.ceil(max_context_tokens / split_tokens))
    if splits > MAX_SPLITS:
        raise ValueError(f"split_tokens: {split_tokens} makes {splits} parts; at most {MAX_SPLITS} are expected")
    _launch(q, cache, out, head_dim**-0.5 if scale is None else scale, split_tokens, splits, config)
    return out


def _launch(
    q: torch.Tensor,
    cache: PagedCache,
    out: torch.Tensor,
    scale: float,
    split_tokens: int,
    splits: int,
    config: DecodeConfig,
) -> None:
    requests, q_heads, head_dim = q.shape
    group = q_heads // cache.kv_heads
    rows = tile_rows(group)
    row_blocks = math.ceil(group / rows)
    block_dim = max(16, triton.next_power_of_2(head_dim))
    parts, lse = out.unsqueeze(2), out
    if splits > 1:
        parts = torch.empty((requests, q_heads, splits, head_dim), dtype=torch.float32, device=q.device)
        lse = torch.empty((requests, q_heads, splits), dtype=torch.float32, device=q.device)
    decode_split_kernel[(requests, cache.kv_heads * row_blocks, splits)](
        q,
        cache.k,
        cache.v,
        cache.page_table,
        cache.context_tokens,
        parts,
        lse,
        scale * LOG2_E,
        split_tokens,
        *q.stride()[:2],
        *cache.k.stride()[:3],
        cache.page_table.stride(0),
        *parts.stride()[:3],
        SPLITS=splits,
        GROUP=group,
        ROWS=rows,
        ROW_BLOCKS=row_blocks,
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim,
        PAGE_TOKENS=cache.page_tokens,
        BLOCK_TOKENS=config.block_tokens,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if splits > 1:
        decode_reduce_kernel[(requests, q_heads)](
            parts,
            lse,
            cache.context_tokens,
            out,
            split_tokens,
            *out.stride()[:2],
            SPLITS=splits,
            HEAD_DIM=head_dim,
            BLOCK_DIM=block_dim,
            num_warps=1,
        )


def paged_decode_reference(q: torch.Tensor, cache: PagedCache, scale: float | None = None) -> torch.Tensor:
    """The same in float64, request by request, f64[requests, q_heads, head_dim]."""
    requests, q_heads, head_dim = q.shape
    group = q_heads // cache.kv_heads
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    for request in range(requests):
        keys, values = cache.request(request)
        if not len(keys):
            continue
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = torch.einsum("hd,thd->ht", q[request].double(), keys)
        weights = torch.softmax(scores * (head_dim**-0.5 if scale is None else scale), dim=1)
        out[request] = torch.einsum("ht,thd->hd", weights, values)
    return out


def _processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; the interpreter is given a Hopper's 132."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
