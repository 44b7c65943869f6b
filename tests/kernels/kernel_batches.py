"""Batches to test with: fresh random values, pages in random places, and NaN in everything that must not be read."""

import math
from collections.abc import Sequence

import torch

from simkit.kernels.attention_features import AttentionFeatures
from simkit.kernels.paged_cache import PagedCache, check_contents

# The largest error accepted against float64, of values up to 1 absolute, above relative. The inputs are exact, so with
# unit roundoff u (2^-8 bf16, 2^-11 fp16) the output is rounded once, u |out|, and so are the softmax weights before
# they are multiplied, u sum w |v|: four u in all. f32 rounds in sums of up to 256 products too: 32 times its 2^-24.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4 * 2**-11, torch.bfloat16: 4 * 2**-8}


def random_cache(
    contexts: Sequence[int], kv_heads: int, head_dim: int, page_tokens: int, dtype: torch.dtype, seed: int
) -> PagedCache:
    """A cache of requests of these contexts; unused pages, tails of pages and of the page table are poisoned."""
    random = torch.Generator().manual_seed(seed)
    pages = [math.ceil(context / page_tokens) for context in contexts]
    shape = (sum(pages) + 2, page_tokens, kv_heads, head_dim)
    k = torch.full(shape, math.nan, dtype=dtype)
    v = torch.full(shape, math.nan, dtype=dtype)
    table = torch.full((len(contexts), max(pages, default=0) + 1), 1 << 30, dtype=torch.int32)
    places = iter(torch.randperm(shape[0], generator=random).tolist())
    for request, context in enumerate(contexts):
        for number in range(pages[request]):
            page = next(places)
            used = min(page_tokens, context - number * page_tokens)
            k[page, :used] = torch.randn(used, kv_heads, head_dim, generator=random).to(dtype)
            v[page, :used] = torch.randn(used, kv_heads, head_dim, generator=random).to(dtype)
            table[request, number] = page
    cache = PagedCache(k, v, table, torch.tensor(contexts, dtype=torch.int32))
    check_contents(cache, max(contexts, default=0))
    return cache


def random_queries(rows: int, q_heads: int, head_dim: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """[rows, q_heads, head_dim] of standard normal values."""
    return torch.randn(rows, q_heads, head_dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantised(cache: PagedCache, per_head: bool, seed: int) -> PagedCache:
    """The cache in fp8, each tensor or head with a scale of its own; what must not be read stays NaN."""
    random = torch.Generator().manual_seed(seed)
    scales = [0.01 + torch.rand(cache.kv_heads if per_head else 1, generator=random) / 50 for _ in range(2)]
    k, v = (x.double() / scale.double()[:, None] for x, scale in zip((cache.k, cache.v), scales, strict=True))
    return cache._replace(
        k=k.clamp(-448, 448).to(torch.float8_e4m3fn),
        v=v.clamp(-448, 448).to(torch.float8_e4m3fn),
        k_scale=scales[0],
        v_scale=scales[1],
    )


def features_of(names: Sequence[str], q_heads: int, seed: int) -> AttentionFeatures:
    """Those of the features that are named, so strong that leaving one out shows."""
    random = torch.Generator().manual_seed(seed)
    return AttentionFeatures(
        window_tokens=21 if "window" in names else None,
        soft_cap=1.5 if "soft_cap" in names else None,
        alibi_slopes=torch.rand(q_heads, generator=random) if "alibi" in names else None,
        sinks=2.0 + torch.randn(q_heads, generator=random) if "sinks" in names else None,
    )


def poisoned(like: torch.Tensor) -> torch.Tensor:
    """An output in which every element that is not written shows."""
    return torch.full_like(like, math.nan)


def moved(cache: PagedCache, seed: int) -> PagedCache:
    """The same requests with every page somewhere else."""
    order = torch.randperm(cache.k.shape[0], generator=torch.Generator().manual_seed(seed))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    table = cache.page_table.clone()
    named = table < len(order)
    table[named] = place[table[named].long()].int()
    return cache._replace(k=cache.k[order], v=cache.v[order], page_table=table)


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest error of any element, relative where |wanted| > 1; NaN if any is NaN."""
    return float(((found.double() - wanted).abs() / wanted.abs().clamp(min=1.0)).max()) if found.numel() else 0.0
