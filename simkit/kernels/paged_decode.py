"""Decode attention over a paged KV cache: one new token a request, split over the context.

Math. For request r and query head h, with key-value head g = h // (q_heads // kv_heads), n = context_tokens[r] and
first = 0, or max(0, n - window) with a sliding window:

    s[t] = scale * q[r, h] . K[t, g],  t = first .. n - 1    scores, f32, changed as in `attention_features`
    out[r, h] = sum_t softmax(s)[t] * V[t, g]                0 where n = 0

Split-KV. The keys a request sees are cut into parts of `split_tokens`. For each part a program computes

    m = max s,  l = sum 2^(s - m),  o = sum 2^(s - m) V / l,  lse = m + log2 l

and `split_kv` adds parts up; a sink counts in the first part. A request has as many parts as its own context needs, so
time follows the total context rather than batch x longest. All softmax arithmetic is f32 and base 2.

Layout. q and out [requests, q_heads, head_dim] of f32, f16 or bf16, cache as in `paged_cache`; partial results
f32[requests, q_heads, splits, head_dim] and f32[requests, q_heads, splits]. The query heads that share a key-value head
are the rows of one tile (at least 16, the least that tensor cores take), so each key is read once for all of them. fp8
keys and values are widened to q's dtype, which holds every e4m3 exactly; their scales are applied to scores and output.

Sources: split-KV is Flash-Decoding (Dao et al., 2023); the packing of a group's heads is that of vLLM's
`triton_unified_attention.py` and SGLang's `decode_attention.py`, a fixed part length SGLang's deterministic mode.
"""

import math

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_at_least, check_can_launch, check_tensor
from simkit.kernels.attention_features import PLAIN, AttentionFeatures, attention_reference, check_features
from simkit.kernels.attention_tile import LOG2_E, biased, capped, fold, load_scale, load_slopes, softmax_start
from simkit.kernels.configurations import NAMES, Configuration, configuration
from simkit.kernels.jit import jit
from simkit.kernels.paged_cache import PagedCache, check_cache, check_heads, scale_stride
from simkit.kernels.split_kv import add_up, choose_split_tokens, count_splits, partial_results, processors

MIN_ROWS = 16  # of a tensor-core tile
MAX_ROWS = 64


@jit
def decode_split_kernel(
    q: tl.pointer_type,
    k: tl.pointer_type,
    v: tl.pointer_type,
    page_table: tl.pointer_type,
    context_tokens: tl.pointer_type,
    k_scale: tl.pointer_type,
    v_scale: tl.pointer_type,
    alibi_slopes: tl.pointer_type,
    sinks: tl.pointer_type,
    partial_out: tl.pointer_type,
    partial_lse: tl.pointer_type,
    scale_log2: float,
    soft_cap_log2: float,
    window_tokens: int,
    split_tokens: int,
    splits: int,
    q_stride_request: int,
    q_stride_head: int,
    kv_stride_page: int,
    kv_stride_token: int,
    kv_stride_head: int,
    k_scale_stride: int,
    v_scale_stride: int,
    table_stride: int,
    out_stride_request: int,
    out_stride_head: int,
    out_stride_split: int,
    SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
) -> None:
    """One part of the keys one request sees, for up to ROWS query heads of one key-value head.

    Grid (requests, kv_heads * ROW_BLOCKS, splits). Without SPLIT `partial_out` is the output itself. Scales, slopes,
    sinks, cap and window are None where there is none, which leaves them out of the code.
    """
    request = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // ROW_BLOCKS
    split = tl.program_id(2)
    context = tl.load(context_tokens + request)
    begin = split * split_tokens
    if window_tokens is not None:
        begin += tl.maximum(context - window_tokens, 0)
    if SPLIT:
        if begin >= context:
            return
        end = tl.minimum(begin + split_tokens, context)
    else:
        end = context

    row = (tl.program_id(1) % ROW_BLOCKS) * ROWS + tl.arange(0, ROWS)  # [ROWS] head within the group
    row_ok = row < GROUP
    head = kv_head * GROUP + row
    dim = tl.arange(0, BLOCK_DIM)
    dim_ok = dim < HEAD_DIM
    query_ok = row_ok[:, None] & dim_ok[None, :]
    query_at = q + request * q_stride_request + head[:, None] * q_stride_head + dim[None, :]
    query = tl.load(query_at, mask=query_ok, other=0.0)  # [ROWS, BLOCK_DIM]
    score_scale = scale_log2 * load_scale(k_scale, k_scale_stride, kv_head)
    slopes = load_slopes(alibi_slopes, head, row_ok)

    best, total = softmax_start(sinks, head, row_ok, split == 0, ROWS)
    acc = tl.zeros([ROWS, BLOCK_DIM], tl.float32)
    for first in range(begin, end, BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        token_ok = token < end
        page = tl.load(page_table + request * table_stride + token // PAGE_TOKENS, mask=token_ok, other=0)
        at = page.to(tl.int64) * kv_stride_page + (token % PAGE_TOKENS) * kv_stride_token + kv_head * kv_stride_head
        ok = token_ok[:, None] & dim_ok[None, :]
        keys = tl.load(k + at[:, None] + dim[None, :], mask=ok, other=0.0).to(query.dtype)  # [BLOCK_TOKENS, BLOCK_DIM]
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * score_scale  # [ROWS, BLOCK_TOKENS]
        scores = biased(capped(scores, soft_cap_log2), slopes, (token - (context - 1))[None, :])
        scores = tl.where(token_ok[None, :], scores, float("-inf"))
        values = tl.load(v + at[:, None] + dim[None, :], mask=ok, other=0.0).to(query.dtype)
        best, total, acc = fold(best, total, acc, scores, values, False)

    # an empty context has acc 0, and total 0 or its sink's 1: its output is 0
    result = acc / tl.where(total > 0.0, total, 1.0)[:, None] * load_scale(v_scale, v_scale_stride, kv_head)
    out_at = partial_out + request * out_stride_request + head[:, None] * out_stride_head + split * out_stride_split
    tl.store(out_at + dim[None, :], result.to(partial_out.dtype.element_ty), mask=query_ok)
    if SPLIT:
        q_heads = tl.num_programs(1) // ROW_BLOCKS * GROUP
        lse_at = partial_lse + (request * q_heads + head) * splits + split
        tl.store(lse_at, best + tl.log2(total), mask=row_ok)


def tile_rows(group: int) -> int:
    """Rows of a tile for a group of query heads; larger groups take several tiles."""
    return min(MAX_ROWS, max(MIN_ROWS, int(triton.next_power_of_2(group))))


def paged_decode(
    q: torch.Tensor,
    cache: PagedCache,
    max_context_tokens: int,
    scale: float | None = None,
    split_tokens: int | None = None,
    out: torch.Tensor | None = None,
    features: AttentionFeatures = PLAIN,
) -> torch.Tensor:
    """Attention of one token a request over its context, [requests, q_heads, head_dim] of q's dtype.

    Args:
        q: [requests, q_heads, head_dim], f32, f16 or bf16, last axis contiguous.
        cache: keys and values of the same dtype or of fp8, see `PagedCache`.
        max_context_tokens: at least the longest context of the batch, known to the host so that it need not wait.
        scale: of the scores; head_dim ** -0.5 if None.
        split_tokens: tokens a part; None chooses by `choose_split_tokens`.
        out: where to write, of q's shape and dtype; made if None.
        features: what the layer adds to attention.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    check_tensor("q", q, (None, None, None), FLOATS, q.device)
    requests, q_heads, head_dim = q.shape
    check_cache(cache, requests, head_dim, q.dtype, q.device)
    check_can_launch("q", q, decode_split_kernel)
    check_heads(q_heads, cache, head_dim)
    check_at_least("max_context_tokens", max_context_tokens, 0)
    check_features(features, q_heads, "causal", q.device)
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    check_tensor("out", out, tuple(q.shape), (q.dtype,), q.device)
    if requests == 0 or q_heads == 0:
        return out
    config = configuration(
        "decode",
        q.device,
        dtype=NAMES[q.dtype],
        cache=NAMES[cache.k.dtype],
        head_dim=head_dim,
        rows=tile_rows(q_heads // cache.kv_heads),
    )
    seen = min(max_context_tokens, features.window_tokens or max_context_tokens)
    if split_tokens is None:
        block = config.constants["BLOCK_TOKENS"]
        split_tokens = choose_split_tokens(requests, cache.kv_heads, seen, processors(q.device), block)
    check_at_least("split_tokens", split_tokens, 1)
    splits = count_splits(seen, split_tokens)
    _launch(q, cache, out, head_dim**-0.5 if scale is None else scale, features, split_tokens, splits, config)
    return out


def _launch(
    q: torch.Tensor,
    cache: PagedCache,
    out: torch.Tensor,
    scale: float,
    features: AttentionFeatures,
    split_tokens: int,
    splits: int,
    config: Configuration,
) -> None:
    requests, q_heads, head_dim = q.shape
    group = q_heads // cache.kv_heads
    rows = tile_rows(group)
    row_blocks = math.ceil(group / rows)
    parts, lse = partial_results(out, splits)
    decode_split_kernel[(requests, cache.kv_heads * row_blocks, splits)](
        q,
        cache.k,
        cache.v,
        cache.page_table,
        cache.context_tokens,
        cache.k_scale,
        cache.v_scale,
        features.alibi_slopes,
        features.sinks,
        parts,
        lse,
        scale * LOG2_E.value,
        None if features.soft_cap is None else features.soft_cap * LOG2_E.value,
        features.window_tokens,
        split_tokens,
        splits,
        *q.stride()[:2],
        *cache.k.stride()[:3],
        scale_stride(cache.k_scale),
        scale_stride(cache.v_scale),
        cache.page_table.stride(0),
        *parts.stride()[:3],
        SPLIT=splits > 1,
        GROUP=group,
        ROWS=rows,
        ROW_BLOCKS=row_blocks,
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        PAGE_TOKENS=cache.page_tokens,
        **config.constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    add_up(parts, lse, cache.context_tokens, out, split_tokens)


def paged_decode_reference(
    q: torch.Tensor, cache: PagedCache, scale: float | None = None, features: AttentionFeatures = PLAIN
) -> torch.Tensor:
    """The same in float64, request by request, f64[requests, q_heads, head_dim]."""
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    for request in range(len(q)):
        keys, values = cache.request(request)
        last = torch.tensor([len(keys) - 1], device=q.device)
        out[request] = attention_reference(q[request : request + 1], keys, values, last, scale, features)[0]
    return out
