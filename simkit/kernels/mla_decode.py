"""Decode attention over a paged cache of latents: multi-head latent attention with its projections absorbed.

Math. A token's cache row c[t] is a latent of `latent_dim` (512 in DeepSeek-V2 and V3) and a rotated key part of
`rope_dim` (64) that all heads share. The query's head h has been multiplied by its key up-projection, so that for
request r with n = context_tokens[r]

    s[t] = scale * q[r, h] . c[t],  t = 0 .. n - 1           over all latent_dim + rope_dim = 576
    out[r, h] = sum_t softmax(s)[t] * c[t, : latent_dim]     0 where n = 0; the value up-projection comes after

It is attention with one key-value head whose values are the first part of its keys: each tile of the cache is read once
and used twice. Split over the context as in `paged_decode`; all heads of a tile are its rows. `scale` is the model's,
(192 ** -0.5 in DeepSeek-V3, times its YaRN factor squared), and no function of 576.

Layout. q [requests, heads, latent_dim + rope_dim] of f32, f16 or bf16, latents [pages, page_tokens, latent_dim +
rope_dim] of the same or fp8 with one scale, out [requests, heads, latent_dim].

Sources: DeepSeek-V2 (2024), section 2.1 and appendix C; the split into 512 + 64 as SGLang's `decode_attention.py`.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_at_least, check_can_launch, check_tensor
from simkit.kernels.attention_features import attention_reference
from simkit.kernels.attention_tile import LOG2_E, fold, load_scale
from simkit.kernels.configurations import NAMES, Configuration, configuration
from simkit.kernels.jit import jit
from simkit.kernels.paged_cache import FP8, PagedCache, check_cache
from simkit.kernels.split_kv import add_up, choose_split_tokens, count_splits, partial_results, processors

MIN_ROWS = 16  # of a tensor-core tile
DIMS = (16, 32, 64, 128, 256, 512)  # of either part: tiles are powers of two, and 512 is as wide as registers hold


class LatentCache(NamedTuple):
    """Latents of a batch of requests, in pages of a shared pool; token t of request r as in `PagedCache`."""

    latents: torch.Tensor  # [pages, page_tokens, latent_dim + rope_dim]
    page_table: torch.Tensor  # i32[requests, pages a request can have]
    context_tokens: torch.Tensor  # i32[requests] tokens in the cache, >= 0, the step's own included
    scale: torch.Tensor | None = None  # f32[1], of fp8 latents; None: 1

    def paged(self) -> PagedCache:
        """The same memory as keys and values of one head."""
        one_head = self.latents.unsqueeze(2)
        return PagedCache(one_head, one_head, self.page_table, self.context_tokens, self.scale, self.scale)


@jit
def mla_split_kernel(
    q: tl.pointer_type,
    latents: tl.pointer_type,
    page_table: tl.pointer_type,
    context_tokens: tl.pointer_type,
    cache_scale: tl.pointer_type,
    partial_out: tl.pointer_type,
    partial_lse: tl.pointer_type,
    scale_log2: float,
    heads: int,
    split_tokens: int,
    splits: int,
    q_stride_request: int,
    q_stride_head: int,
    cache_stride_page: int,
    cache_stride_token: int,
    table_stride: int,
    out_stride_request: int,
    out_stride_head: int,
    out_stride_split: int,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    LATENT_DIM: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
) -> None:
    """One part of one request's context, for ROWS heads.

    Grid (requests, blocks of heads, splits). Without SPLIT `partial_out` is the output itself.
    """
    request = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    context = tl.load(context_tokens + request)
    begin = split * split_tokens
    if SPLIT:
        if begin >= context:
            return
        end = tl.minimum(begin + split_tokens, context)
    else:
        end = context

    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    head_ok = head < heads
    latent = tl.arange(0, LATENT_DIM)
    rope = LATENT_DIM + tl.arange(0, ROPE_DIM)
    query_at = q + request * q_stride_request + head[:, None] * q_stride_head
    query = tl.load(query_at + latent[None, :], mask=head_ok[:, None], other=0.0)  # [ROWS, LATENT_DIM]
    query_rope = tl.load(query_at + rope[None, :], mask=head_ok[:, None], other=0.0)  # [ROWS, ROPE_DIM]
    factor = load_scale(cache_scale, 0, 0)
    score_scale = scale_log2 * factor

    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, LATENT_DIM], tl.float32)
    for first in range(begin, end, BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        token_ok = token < end
        page = tl.load(page_table + request * table_stride + token // PAGE_TOKENS, mask=token_ok, other=0)
        at = latents + (page.to(tl.int64) * cache_stride_page + (token % PAGE_TOKENS) * cache_stride_token)[:, None]
        keys = tl.load(at + latent[None, :], mask=token_ok[:, None], other=0.0).to(query.dtype)
        keys_rope = tl.load(at + rope[None, :], mask=token_ok[:, None], other=0.0).to(query.dtype)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee")  # [ROWS, BLOCK_TOKENS]
        scores = tl.dot(query_rope, tl.trans(keys_rope), acc=scores, input_precision="ieee") * score_scale
        scores = tl.where(token_ok[None, :], scores, float("-inf"))
        best, total, acc = fold(best, total, acc, scores, keys, False)

    # an empty context has total 0 and acc 0: its output is 0
    result = acc / tl.where(total > 0.0, total, 1.0)[:, None] * factor
    out_at = partial_out + request * out_stride_request + head[:, None] * out_stride_head + split * out_stride_split
    tl.store(out_at + latent[None, :], result.to(partial_out.dtype.element_ty), mask=head_ok[:, None])
    if SPLIT:
        tl.store(partial_lse + (request * heads + head) * splits + split, best + tl.log2(total), mask=head_ok)


def tile_rows(config: Configuration, heads: int) -> int:
    """Heads a tile: those configured, or fewer where the model has fewer."""
    return min(config.constants["ROWS"], max(MIN_ROWS, int(triton.next_power_of_2(heads))))


def mla_decode(
    q: torch.Tensor,
    cache: LatentCache,
    max_context_tokens: int,
    scale: float,
    latent_dim: int = 512,
    split_tokens: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one token a request over its latents, [requests, heads, latent_dim] of q's dtype.

    Args:
        q: [requests, heads, latent_dim + rope_dim], f32, f16 or bf16, last axis contiguous.
        cache: latents of the same dtype or of fp8, see `LatentCache`.
        max_context_tokens: at least the longest context of the batch, known to the host so that it need not wait.
        scale: of the scores.
        latent_dim: of q and of the cache's rows, the part that values are made of.
        split_tokens: tokens a part; None chooses by `choose_split_tokens`.
        out: where to write; made if None.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    check_tensor("q", q, (None, None, None), FLOATS, q.device)
    requests, heads, dim = q.shape
    if latent_dim not in DIMS or dim - latent_dim not in DIMS:
        raise ValueError(f"latent_dim: q has {dim} = {latent_dim} + {dim - latent_dim}; both of {DIMS} are expected")
    check_tensor("cache.latents", cache.latents, (None, None, dim), (*FLOATS, FP8), q.device)
    check_cache(cache.paged(), requests, dim, q.dtype, q.device)
    check_can_launch("q", q, mla_split_kernel)
    check_at_least("max_context_tokens", max_context_tokens, 0)
    out = torch.empty((requests, heads, latent_dim), dtype=q.dtype, device=q.device) if out is None else out
    check_tensor("out", out, (requests, heads, latent_dim), (q.dtype,), q.device)
    if requests == 0 or heads == 0:
        return out
    names = {"dtype": NAMES[q.dtype], "cache": NAMES[cache.latents.dtype]}
    config = configuration("mla_decode", q.device, **names, latent_dim=latent_dim, heads=heads)
    blocks = math.ceil(heads / tile_rows(config, heads))
    if split_tokens is None:
        block = config.constants["BLOCK_TOKENS"]
        split_tokens = choose_split_tokens(requests, blocks, max_context_tokens, processors(q.device), block)
    check_at_least("split_tokens", split_tokens, 1)
    splits = count_splits(max_context_tokens, split_tokens)
    _launch(q, cache, out, scale, split_tokens, splits, config)
    return out


def _launch(
    q: torch.Tensor,
    cache: LatentCache,
    out: torch.Tensor,
    scale: float,
    split_tokens: int,
    splits: int,
    config: Configuration,
) -> None:
    requests, heads, dim = q.shape
    rows = tile_rows(config, heads)
    parts, lse = partial_results(out, splits)
    mla_split_kernel[(requests, math.ceil(heads / rows), splits)](
        q,
        cache.latents,
        cache.page_table,
        cache.context_tokens,
        cache.scale,
        parts,
        lse,
        scale * LOG2_E.value,
        heads,
        split_tokens,
        splits,
        *q.stride()[:2],
        *cache.latents.stride()[:2],
        cache.page_table.stride(0),
        *parts.stride()[:3],
        SPLIT=splits > 1,
        ROWS=rows,
        LATENT_DIM=out.shape[2],
        ROPE_DIM=dim - out.shape[2],
        PAGE_TOKENS=cache.latents.shape[1],
        BLOCK_TOKENS=config.constants["BLOCK_TOKENS"],
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    add_up(parts, lse, cache.context_tokens, out, split_tokens)


def mla_decode_reference(q: torch.Tensor, cache: LatentCache, scale: float, latent_dim: int = 512) -> torch.Tensor:
    """The same in float64, request by request, f64[requests, heads, latent_dim]."""
    out = torch.zeros((*q.shape[:2], latent_dim), dtype=torch.float64, device=q.device)
    for request in range(len(q)):
        keys, _ = cache.paged().request(request)
        last = torch.tensor([len(keys) - 1], device=q.device)
        out[request] = attention_reference(q[request : request + 1], keys, keys[:, :, :latent_dim], last, scale)[0]
    return out
