"""Prefill attention over a paged KV cache: chunks of prompts after a past, encoders, cross-attention, in one launch.

Math. Request r brings query tokens i = 0 .. n - 1, n = query_starts[r + 1] - query_starts[r]. Keys and values of its
c = context_tokens[r] tokens are in the cache, the queries' own among them, as the last, but with mask `cross`. For
query head h, with key-value head g = h // (q_heads // kv_heads), and the query's position p = c - n + i:

    s[i, t] = scale * q[i, h] . K[t, g]                      changed as in `attention_features`
    out[i, h] = sum_t softmax(s[i])[t] * V[t, g]

    causal         t = 0 .. p          a decoder: a chunk after a past
    bidirectional  t = 0 .. c - 1      an encoder
    cross          t = 0 .. c - 1      the keys are another sequence's; 0 where it is empty

Tiles. A program has BLOCK_ROWS rows, the (token, head) pairs of consecutive tokens and of one group of heads, so that a
key is read once for the group. Keys that all its rows see, such as the past and the chunk's earlier tokens, go through
a loop without a mask; the diagonal, the end of the context and the edge of a window, at most BLOCK_ROWS + BLOCK_TOKENS
keys each, through loops with one. Keys that no row sees are not read. Softmax is f32 and online, base 2.

Layout. q and out [tokens, q_heads, head_dim], the requests' tokens one after the other; query_starts i32[requests + 1];
cache as in `paged_cache`. fp8 keys and values are widened to q's dtype, their scales applied to scores and output.

Sources: FlashAttention-2 (Dao, 2023) for the online softmax; rows of (token, head) as in vLLM's
`triton_unified_attention.py`; the two loops as in the Triton tutorial 06.
"""

import math
from itertools import pairwise

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_at_least, check_can_launch, check_tensor
from simkit.kernels.attention_features import PLAIN, AttentionFeatures, Mask, attention_reference, check_features
from simkit.kernels.attention_tile import LOG2_E, biased, capped, fold, load_scale, load_slopes, softmax_start
from simkit.kernels.configurations import NAMES, Configuration, configuration
from simkit.kernels.jit import inlined, jit
from simkit.kernels.paged_cache import PagedCache, check_cache, check_heads, scale_stride

MASKS = ("causal", "bidirectional", "cross")
MAX_GROUP = 128


@inlined
def _attend(  # type: ignore[no-untyped-def]
    first: int,
    begin: int,
    end: int,
    tile: tl.tensor,
    position: tl.tensor,
    best: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    slopes: tl.tensor,
    pages: tl.tuple,
    rules: tl.tuple,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """The keys first .. first + BLOCK_TOKENS - 1 added to the rows' online softmax.

    MASKED: of them only those from `begin` to before `end` are read, and a row takes only those that it sees.
    """
    k_head, v_head, table, kv_stride_page, kv_stride_token = pages
    score_scale, soft_cap_log2, window_tokens = rules
    dim = tl.arange(0, acc.shape[1])
    token = first + tl.arange(0, BLOCK_TOKENS)
    ok = (dim < HEAD_DIM)[None, :]
    if MASKED:
        token_ok = token < end
        if window_tokens is not None:
            token_ok = token_ok & (token >= begin)
        ok = ok & token_ok[:, None]
        page = tl.load(table + token // PAGE_TOKENS, mask=token_ok, other=0)
    else:
        page = tl.load(table + token // PAGE_TOKENS)
    at = page.to(tl.int64) * kv_stride_page + (token % PAGE_TOKENS) * kv_stride_token
    keys = tl.load(k_head + at[:, None] + dim[None, :], mask=ok, other=0.0).to(tile.dtype)
    scores = tl.dot(tile, tl.trans(keys), input_precision="ieee") * score_scale  # [BLOCK_ROWS, BLOCK_TOKENS]
    ahead = token[None, :] - position[:, None]
    scores = biased(capped(scores, soft_cap_log2), slopes, ahead)
    if MASKED:
        seen = token_ok[None, :]
        if CAUSAL:
            seen = seen & (ahead <= 0)
        if window_tokens is not None:
            seen = seen & (-ahead < window_tokens)
            if not CAUSAL:
                seen = seen & (ahead < window_tokens)
        scores = tl.where(seen, scores, float("-inf"))
    values = tl.load(v_head + at[:, None] + dim[None, :], mask=ok, other=0.0).to(tile.dtype)
    # only before the edge of a window can a row have seen nothing yet: without one every row sees key 0
    return fold(best, total, acc, scores, values, MASKED and window_tokens is not None)


@jit
def prefill_kernel(
    q: tl.pointer_type,
    k: tl.pointer_type,
    v: tl.pointer_type,
    page_table: tl.pointer_type,
    context_tokens: tl.pointer_type,
    query_starts: tl.pointer_type,
    k_scale: tl.pointer_type,
    v_scale: tl.pointer_type,
    alibi_slopes: tl.pointer_type,
    sinks: tl.pointer_type,
    out: tl.pointer_type,
    scale_log2: float,
    soft_cap_log2: float,
    window_tokens: int,
    q_stride_token: int,
    q_stride_head: int,
    kv_stride_page: int,
    kv_stride_token: int,
    kv_stride_head: int,
    k_scale_stride: int,
    v_scale_stride: int,
    table_stride: int,
    out_stride_token: int,
    out_stride_head: int,
    CAUSAL: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
) -> None:
    """BLOCK_ROWS // GROUP query tokens of one request, all heads of one group.

    Grid (blocks of the longest chunk, kv_heads, requests). Scales, slopes, sinks, cap and window are None where there
    is none, which leaves them out of the code.
    """
    request = tl.program_id(2).to(tl.int64)
    kv_head = tl.program_id(1)
    BLOCK_QUERIES: tl.constexpr = BLOCK_ROWS // GROUP
    start = tl.load(query_starts + request)
    queries = tl.load(query_starts + request + 1) - start
    first_query = tl.program_id(0) * BLOCK_QUERIES
    if first_query >= queries:
        return
    context = tl.load(context_tokens + request)
    past = context - queries

    row = tl.arange(0, BLOCK_ROWS)
    query = first_query + row // GROUP  # [BLOCK_ROWS] token within the chunk
    head = kv_head * GROUP + row % GROUP
    row_ok = (row < BLOCK_QUERIES * GROUP) & (query < queries)
    dim = tl.arange(0, BLOCK_DIM)
    ok = row_ok[:, None] & (dim < HEAD_DIM)[None, :]
    token_row = (start + query).to(tl.int64)
    queries_at = q + token_row[:, None] * q_stride_token + head[:, None] * q_stride_head + dim[None, :]
    tile = tl.load(queries_at, mask=ok, other=0.0)  # [BLOCK_ROWS, BLOCK_DIM]
    position = past + query

    score_scale = scale_log2 * load_scale(k_scale, k_scale_stride, kv_head)
    slopes = load_slopes(alibi_slopes, head, row_ok)
    head_offset = kv_head * kv_stride_head
    table = page_table + request * table_stride
    pages = (k + head_offset, v + head_offset, table, kv_stride_page, kv_stride_token)
    rules = (score_scale, soft_cap_log2, window_tokens)

    # keys begin .. end - 1 are seen by any row, all_begin .. all_end - 1 by every row
    first_position = past + first_query
    last_position = past + tl.minimum(first_query + BLOCK_QUERIES, queries) - 1
    begin = 0
    end = context
    all_end = context
    if CAUSAL:
        end = last_position + 1
        all_end = first_position + 1
    elif window_tokens is not None:
        end = tl.minimum(context, last_position + window_tokens)
        all_end = tl.minimum(context, first_position + window_tokens)
    unmasked = 0
    best, total = softmax_start(sinks, head, row_ok, True, BLOCK_ROWS)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    if window_tokens is not None:
        begin = tl.maximum(first_position - window_tokens + 1, 0)
        all_begin = tl.maximum(last_position - window_tokens + 1, 0)
        unmasked = (all_begin + BLOCK_TOKENS - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        for first in range(begin // BLOCK_TOKENS * BLOCK_TOKENS, tl.minimum(unmasked, end), BLOCK_TOKENS):
            best, total, acc = _attend(
                first, begin, end, tile, position, best, total, acc, slopes, pages, rules,
                True, CAUSAL, HEAD_DIM, PAGE_TOKENS, BLOCK_TOKENS,
            )  # fmt: skip
    masked = tl.maximum(unmasked, all_end // BLOCK_TOKENS * BLOCK_TOKENS)
    for first in range(unmasked, masked, BLOCK_TOKENS):
        best, total, acc = _attend(
            first, begin, end, tile, position, best, total, acc, slopes, pages, rules,
            False, CAUSAL, HEAD_DIM, PAGE_TOKENS, BLOCK_TOKENS,
        )  # fmt: skip
    for first in range(masked, end, BLOCK_TOKENS):
        best, total, acc = _attend(
            first, begin, end, tile, position, best, total, acc, slopes, pages, rules,
            True, CAUSAL, HEAD_DIM, PAGE_TOKENS, BLOCK_TOKENS,
        )  # fmt: skip

    if not CAUSAL:
        total = tl.where(total > 0.0, total, 1.0)  # another sequence may be empty
    result = acc / total[:, None] * load_scale(v_scale, v_scale_stride, kv_head)
    out_at = out + token_row[:, None] * out_stride_token + head[:, None] * out_stride_head + dim[None, :]
    tl.store(out_at, result.to(out.dtype.element_ty), mask=ok)


def block_rows(config: Configuration, group: int) -> int:
    """Rows of a program, (token, head) pairs: those configured, and at least one token's."""
    return max(config.constants["BLOCK_ROWS"], int(triton.next_power_of_2(group)))


def paged_prefill(
    q: torch.Tensor,
    query_starts: torch.Tensor,
    cache: PagedCache,
    max_query_tokens: int,
    scale: float | None = None,
    out: torch.Tensor | None = None,
    features: AttentionFeatures = PLAIN,
    mask: Mask = "causal",
) -> torch.Tensor:
    """Attention of chunks over their requests' contexts, [tokens, q_heads, head_dim] of q's dtype.

    Args:
        q: [tokens, q_heads, head_dim], f32, f16 or bf16, last axis contiguous.
        query_starts: i32[requests + 1], ascending, within 0 to tokens; a request may bring no token.
        cache: keys and values of the same dtype or of fp8, the chunks' own included, see `PagedCache`.
        max_query_tokens: at least the longest chunk, known to the host so that it need not wait.
        scale: of the scores; head_dim ** -0.5 if None.
        out: where to write, of q's shape and dtype; made if None. Rows of no request are left alone.
        features: what the layer adds to attention.
        mask: `causal`, `bidirectional` (an encoder) or `cross` (the cache is another sequence's).

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    check_tensor("q", q, (None, None, None), FLOATS, q.device)
    tokens, q_heads, head_dim = q.shape
    check_tensor("query_starts", query_starts, (None,), (torch.int32,), q.device)
    requests = len(query_starts) - 1
    if requests < 0:
        raise ValueError("query_starts: is empty; one entry more than there are requests is expected")
    if mask not in MASKS:
        raise ValueError(f"mask: is {mask!r}; one of {MASKS} is expected")
    check_cache(cache, requests, head_dim, q.dtype, q.device)
    check_can_launch("q", q, prefill_kernel)
    check_heads(q_heads, cache, head_dim)
    group = q_heads // cache.kv_heads
    if group > MAX_GROUP:
        raise ValueError(f"q: {group} query heads a key-value head; at most {MAX_GROUP} are expected")
    check_at_least("max_query_tokens", max_query_tokens, 0)
    check_features(features, q_heads, mask, q.device)
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    check_tensor("out", out, tuple(q.shape), (q.dtype,), q.device)
    if tokens == 0 or requests == 0 or q_heads == 0 or max_query_tokens == 0:
        return out
    scale = head_dim**-0.5 if scale is None else scale
    _launch(q, query_starts, cache, max_query_tokens, scale, out, features, mask == "causal")
    return out


def _launch(
    q: torch.Tensor,
    query_starts: torch.Tensor,
    cache: PagedCache,
    max_query_tokens: int,
    scale: float,
    out: torch.Tensor,
    features: AttentionFeatures,
    causal: bool,
) -> None:
    head_dim, group = q.shape[2], q.shape[1] // cache.kv_heads
    names = {"dtype": NAMES[q.dtype], "cache": NAMES[cache.k.dtype]}
    config = configuration("prefill", q.device, **names, head_dim=head_dim, group=group)
    rows = block_rows(config, group)
    blocks = math.ceil(max_query_tokens / (rows // group))
    prefill_kernel[(blocks, cache.kv_heads, len(query_starts) - 1)](
        q,
        cache.k,
        cache.v,
        cache.page_table,
        cache.context_tokens,
        query_starts,
        cache.k_scale,
        cache.v_scale,
        features.alibi_slopes,
        features.sinks,
        out,
        scale * LOG2_E.value,
        None if features.soft_cap is None else features.soft_cap * LOG2_E.value,
        features.window_tokens,
        *q.stride()[:2],
        *cache.k.stride()[:3],
        scale_stride(cache.k_scale),
        scale_stride(cache.v_scale),
        cache.page_table.stride(0),
        *out.stride()[:2],
        CAUSAL=causal,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        PAGE_TOKENS=cache.page_tokens,
        BLOCK_ROWS=rows,
        BLOCK_TOKENS=config.constants["BLOCK_TOKENS"],
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def paged_prefill_reference(
    q: torch.Tensor,
    query_starts: torch.Tensor,
    cache: PagedCache,
    scale: float | None = None,
    features: AttentionFeatures = PLAIN,
    mask: Mask = "causal",
) -> torch.Tensor:
    """The same in float64, request by request, f64[tokens, q_heads, head_dim]; 0 in rows of no request."""
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    for request, (start, end) in enumerate(pairwise(query_starts.tolist())):
        keys, values = cache.request(request)
        position = len(keys) - (end - start) + torch.arange(end - start, device=q.device)
        out[start:end] = attention_reference(q[start:end], keys, values, position, scale, features, mask)
    return out
