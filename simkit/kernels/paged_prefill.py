"""Prefill attention over a paged KV cache: chunks of prompts, each after a past, in one launch.

Math. Request r brings query tokens i = 0 .. n - 1, n = query_starts[r + 1] - query_starts[r], after
past = context_tokens[r] - n tokens; their keys and values are in the cache already. For query head h, with key-value
head g = h // (q_heads // kv_heads):

    s[i, t] = scale * q[i, h] . K[t, g],  t = 0 .. past + i   causal: t is not beyond the query's own position
    out[i, h] = sum_t softmax(s[i])[t] * V[t, g]

Tiles. A program has BLOCK_ROWS rows, the (token, head) pairs of consecutive tokens and of one group of heads, so that a
key is read once for the group. Keys that all its rows may see, the past and the chunk's earlier tokens, go through a
loop without a mask; the diagonal, at most BLOCK_ROWS + BLOCK_TOKENS keys, through one with a mask. Softmax is f32 and
online, base 2.

Layout. q and out [tokens, q_heads, head_dim], the requests' tokens one after the other; query_starts i32[requests + 1];
cache as in `paged_cache`.

Sources: FlashAttention-2 (Dao, 2023) for the online softmax; rows of (token, head) as in vLLM's
`triton_unified_attention.py`; the two loops as in the Triton tutorial 06.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_at_least, check_can_launch, check_tensor
from simkit.kernels.jit import jit
from simkit.kernels.paged_cache import PagedCache, check_cache, check_heads

LOG2_E = math.log2(math.e)
MAX_GROUP = 128


class PrefillConfig(NamedTuple):
    """How a prefill kernel is compiled."""

    block_rows: int  # (token, head) pairs a program
    block_tokens: int  # keys a tile
    num_warps: int
    num_stages: int


@jit
def prefill_kernel(
    q: tl.pointer_type,
    k: tl.pointer_type,
    v: tl.pointer_type,
    page_table: tl.pointer_type,
    context_tokens: tl.pointer_type,
    query_starts: tl.pointer_type,
    out: tl.pointer_type,
    scale_log2: float,
    q_stride_token: int,
    q_stride_head: int,
    kv_stride_page: int,
    kv_stride_token: int,
    kv_stride_head: int,
    table_stride: int,
    out_stride_token: int,
    out_stride_head: int,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
) -> None:
    """BLOCK_ROWS // GROUP query tokens of one request, all heads of one group.

    Grid (blocks of the longest chunk, kv_heads, requests).
    """
    request = tl.program_id(2).to(tl.int64)
    kv_head = tl.program_id(1)
    BLOCK_QUERIES: tl.constexpr = BLOCK_ROWS // GROUP
    start = tl.load(query_starts + request)
    queries = tl.load(query_starts + request + 1) - start
    first_query = tl.program_id(0) * BLOCK_QUERIES
    if first_query >= queries:
        return
    past = tl.load(context_tokens + request) - queries

    row = tl.arange(0, BLOCK_ROWS)
    query = first_query + row // GROUP  # [BLOCK_ROWS] token within the chunk
    head = kv_head * GROUP + row % GROUP
    row_ok = (row < BLOCK_QUERIES * GROUP) & (query < queries)
    dim = tl.arange(0, BLOCK_DIM)
    dim_ok = dim < HEAD_DIM
    ok = row_ok[:, None] & dim_ok[None, :]
    token_row = (start + query).to(tl.int64)
    queries_at = q + token_row[:, None] * q_stride_token + head[:, None] * q_stride_head + dim[None, :]
    tile = tl.load(queries_at, mask=ok, other=0.0)  # [BLOCK_ROWS, BLOCK_DIM]

    best = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    # keys 0 .. past + first_query are seen by every row; of them, whole tiles need no mask
    unmasked = (past + first_query + 1) // BLOCK_TOKENS * BLOCK_TOKENS
    for first in range(0, unmasked, BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        page = tl.load(page_table + request * table_stride + token // PAGE_TOKENS)
        at = page.to(tl.int64) * kv_stride_page + (token % PAGE_TOKENS) * kv_stride_token + kv_head * kv_stride_head
        keys = tl.load(k + at[:, None] + dim[None, :], mask=dim_ok[None, :], other=0.0)
        scores = tl.dot(tile, tl.trans(keys), input_precision="ieee") * scale_log2  # [BLOCK_ROWS, BLOCK_TOKENS]
        new_best = tl.maximum(best, tl.max(scores, 1))
        shrink = tl.exp2(best - new_best)
        weight = tl.exp2(scores - new_best[:, None])
        values = tl.load(v + at[:, None] + dim[None, :], mask=dim_ok[None, :], other=0.0)
        total = total * shrink + tl.sum(weight, 1)
        acc = acc * shrink[:, None] + tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        best = new_best
    end = past + tl.minimum(first_query + BLOCK_QUERIES, queries)
    for first in range(unmasked, end, BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        token_ok = token < end
        page = tl.load(page_table + request * table_stride + token // PAGE_TOKENS, mask=token_ok, other=0)
        at = page.to(tl.int64) * kv_stride_page + (token % PAGE_TOKENS) * kv_stride_token + kv_head * kv_stride_head
        key_ok = token_ok[:, None] & dim_ok[None, :]
        keys = tl.load(k + at[:, None] + dim[None, :], mask=key_ok, other=0.0)
        scores = tl.dot(tile, tl.trans(keys), input_precision="ieee") * scale_log2
        # every row sees a key: key 0 is in a whole tile before, or in the first tile here
        seen = token_ok[None, :] & (token[None, :] <= past + query[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        shrink = tl.exp2(best - new_best)
        weight = tl.exp2(scores - new_best[:, None])
        values = tl.load(v + at[:, None] + dim[None, :], mask=key_ok, other=0.0)
        total = total * shrink + tl.sum(weight, 1)
        acc = acc * shrink[:, None] + tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        best = new_best

    out_at = out + token_row[:, None] * out_stride_token + head[:, None] * out_stride_head + dim[None, :]
    tl.store(out_at, (acc / total[:, None]).to(out.dtype.element_ty), mask=ok)


def prefill_config(group: int, head_dim: int, dtype: torch.dtype) -> PrefillConfig:
    """The configuration of a group of heads, head size and dtype, such that sm_90 code spills no register (Triton 3.6).

    At head size 128 in 16 bits that is wgmma, 192 registers and 98 KB of shared memory. f32 is for checks: with groups
    over 32 it spills. Chosen by compiling, not yet by timing.
    """
    if dtype == torch.float32:
        rows, tokens = 32, 16
    else:
        rows, tokens = (128, 64) if head_dim <= 128 else (64, 32)
    return PrefillConfig(max(rows, triton.next_power_of_2(group)), tokens, num_warps=8, num_stages=2)


def paged_prefill(
    q: torch.Tensor,
    query_starts: torch.Tensor,
    cache: PagedCache,
    max_query_tokens: int,
    scale: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of chunks over their requests' contexts, [tokens, q_heads, head_dim] of q's dtype.

    Args:
        q: [tokens, q_heads, head_dim], f32, f16 or bf16, last axis contiguous.
        query_starts: i32[requests + 1], ascending from 0 to tokens; a request may bring no token.
        cache: keys and values of the same dtype, the chunks' own included, see `PagedCache`.
        max_query_tokens: at least the longest chunk, known to the host so that it need not wait.
        scale: of the scores; head_dim ** -0.5 if None.
        out: where to write, of q's shape and dtype; made if None. Rows of no request are left alone.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    check_tensor("q", q, (None, None, None), FLOATS, q.device)
    tokens, q_heads, head_dim = q.shape
    check_tensor("query_starts", query_starts, (None,), (torch.int32,), q.device)
    requests = len(query_starts) - 1
    if requests < 0:
        raise ValueError("query_starts: is empty; one entry more than there are requests is expected")
    check_cache(cache, requests, head_dim, q.dtype, q.device)
    check_can_launch("q", q, prefill_kernel)
    check_heads(q_heads, cache, head_dim)
    group = q_heads // cache.kv_heads
    if group > MAX_GROUP:
        raise ValueError(f"q: {group} query heads a key-value head; at most {MAX_GROUP} are expected")
    check_at_least("max_query_tokens", max_query_tokens, 0)
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    check_tensor("out", out, tuple(q.shape), (q.dtype,), q.device)
    if tokens == 0 or requests == 0 or q_heads == 0 or max_query_tokens == 0:
        return out
    config = prefill_config(group, head_dim, q.dtype)
    blocks = math.ceil(max_query_tokens / (config.block_rows // group))
    prefill_kernel[(blocks, cache.kv_heads, requests)](
        q,
        cache.k,
        cache.v,
        cache.page_table,
        cache.context_tokens,
        query_starts,
        out,
        (head_dim**-0.5 if scale is None else scale) * LOG2_E,
        *q.stride()[:2],
        *cache.k.stride()[:3],
        cache.page_table.stride(0),
        *out.stride()[:2],
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        PAGE_TOKENS=cache.page_tokens,
        BLOCK_ROWS=config.block_rows,
        BLOCK_TOKENS=config.block_tokens,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def paged_prefill_reference(
    q: torch.Tensor, query_starts: torch.Tensor, cache: PagedCache, scale: float | None = None
) -> torch.Tensor:
    """The same in float64, request by request, f64[tokens, q_heads, head_dim]; 0 in rows of no request."""
    group, head_dim = q.shape[1] // cache.kv_heads, q.shape[2]
    starts = query_starts.tolist()
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    for request, (start, end) in enumerate(pairwise(starts)):
        keys, values = cache.request(request)
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        position = len(keys) - (end - start) + torch.arange(end - start, device=q.device)
        scores = torch.einsum("ihd,thd->hit", q[start:end].double(), keys)
        scores = scores * (head_dim**-0.5 if scale is None else scale)
        hidden = torch.arange(len(keys), device=q.device)[None, :] > position[:, None]
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=2)
        out[start:end] = torch.einsum("hit,thd->ihd", weights, values)
    return out
