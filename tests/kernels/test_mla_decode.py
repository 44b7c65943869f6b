"""Latent decode attention against float64, element by element."""

import math

import pytest
import torch
from kernel_batches import TOLERANCE, moved, poisoned, quantised, random_cache, random_queries, worst

from simkit.kernels.mla_decode import LatentCache, mla_decode, mla_decode_reference
from simkit.kernels.paged_decode import paged_decode

ODD_CONTEXTS = [0, 1, 15, 16, 17, 64, 65, 130]


def latents(
    contexts: list[int], latent: int, rope: int, page_tokens: int, dtype: torch.dtype, seed: int, fp8: bool = False
) -> LatentCache:
    cache = random_cache(contexts, 1, latent + rope, page_tokens, torch.float32 if fp8 else dtype, seed)
    cache = quantised(cache, False, seed) if fp8 else cache
    return LatentCache(cache.k[:, :, 0], cache.page_table, cache.context_tokens, cache.k_scale)


def run(
    q: torch.Tensor, cache: LatentCache, latent: int, split_tokens: int | None = None, scale: float = 0.15
) -> torch.Tensor:
    longest = int(cache.context_tokens.max()) if len(cache.context_tokens) else 0
    return mla_decode(q, cache, longest, scale, latent, split_tokens, poisoned(q[:, :, :latent].contiguous()))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("page_tokens", [16, 64])
@pytest.mark.parametrize("heads", [1, 16, 40])
def test_ragged_contexts_match_float64(dtype: torch.dtype, page_tokens: int, heads: int) -> None:
    cache = latents(ODD_CONTEXTS, 64, 16, page_tokens, dtype, seed=1)
    q = random_queries(len(ODD_CONTEXTS), heads, 80, dtype, seed=2)
    wanted = mla_decode_reference(q, cache, 0.15, 64)
    for split_tokens in (32, 1000):
        found = run(q, cache, 64, split_tokens)
        assert worst(found, wanted) <= TOLERANCE[dtype]
        assert torch.equal(found[0], torch.zeros_like(found[0])), "a request with no context has output 0"


@pytest.mark.parametrize("fp8", [False, True], ids=["16-bit", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_deepseeks_sizes_match_float64(dtype: torch.dtype, fp8: bool) -> None:
    cache = latents([1, 33, 70], 512, 64, 64, dtype, seed=3, fp8=fp8)
    q = random_queries(3, 16, 576, dtype, seed=4)
    scale = 192**-0.5
    assert worst(run(q, cache, 512, 32, scale), mla_decode_reference(q, cache, scale)) <= TOLERANCE[dtype]


def test_it_is_attention_with_one_head_whose_values_are_the_keys_first_part() -> None:
    cache = latents([5, 50], 64, 16, 16, torch.float32, seed=5)
    q = random_queries(2, 4, 80, torch.float32, seed=6)
    pool = cache.latents.unsqueeze(2)
    plain = paged_decode(q, cache.paged()._replace(k=pool, v=pool), 50, 0.15)
    assert worst(run(q, cache, 64), plain[:, :, :64].double()) <= TOLERANCE[torch.float32]


def test_absorbed_projections_give_multi_head_attention() -> None:
    # DeepSeek-V2, section 2.1.2: scores with up-projected keys are those of absorbed queries with latents
    random = torch.Generator().manual_seed(7)
    cache = latents([21], 32, 16, 16, torch.float32, seed=8)
    up_k, up_v = (torch.randn(3, 24, 32, generator=random).double() / 6 for _ in range(2))  # heads, nope, latent
    nope, rope = torch.randn(3, 24, generator=random).double(), torch.randn(3, 16, generator=random).double()
    rows = cache.paged().request(0)[0][:, 0]
    scores = torch.einsum("hd,hdc,tc->ht", nope, up_k, rows[:, :32]) + rope @ rows[:, 32:].T
    wanted = torch.einsum("ht,hdc,tc->hd", torch.softmax(0.2 * scores, 1), up_v, rows[:, :32])
    absorbed = torch.cat([torch.einsum("hd,hdc->hc", nope, up_k), rope], dim=1).float()[None]
    found = torch.einsum("hc,hdc->hd", run(absorbed, cache, 32, None, 0.2)[0].double(), up_v)
    assert worst(found, wanted) <= 4 * TOLERANCE[torch.float32]


def test_the_place_of_pages_and_tokens_beyond_the_context_do_not_show() -> None:
    cache = latents([37, 20], 64, 16, 16, torch.float16, seed=9)
    q = random_queries(2, 4, 80, torch.float16, seed=10)
    before = run(q, cache, 64, 32)
    other = moved(cache.paged(), seed=11)
    assert torch.equal(run(q, cache._replace(latents=other.k[:, :, 0], page_table=other.page_table), 64, 32), before)
    cache.latents[cache.page_table[0, 2], 5:] = math.inf
    assert torch.equal(run(q, cache, 64, 32), before)


def test_softmax_survives_huge_scores() -> None:
    cache = latents([96], 64, 16, 16, torch.float32, seed=12)
    q = torch.zeros(1, 2, 80)
    q[:, :, 70] = 100.0  # in the rotated part
    for token, score in enumerate(torch.linspace(-100, 100, 96).tolist()):
        cache.latents[cache.page_table[0, token // 16], token % 16, 70] = score
    wanted = mla_decode_reference(q, cache, 1.0, 64)
    assert worst(run(q, cache, 64, 32, 1.0), wanted) <= TOLERANCE[torch.float32]


def test_bad_arguments_are_named() -> None:
    cache = latents([5, 20], 64, 16, 16, torch.float32, seed=13)
    q = random_queries(2, 4, 80, torch.float32, seed=14)
    for change, latent, message in (
        ({}, 60, r"^latent_dim: q has 80 = 60 \+ 20"),
        ({"latents": cache.latents.half()}, 64, r"^cache.k: its dtype is torch.float16"),
        ({"latents": cache.latents[:, :, :64]}, 64, r"^cache.latents: its shape is \[\d+, 16, 64\]"),
        ({"scale": torch.ones(1)}, 64, r"^cache.k_scale: is given for a cache of torch.float32"),
        ({"page_table": cache.page_table[:1]}, 64, r"^cache.page_table: its shape is \[1, 3\]; \[2, any\]"),
    ):
        with pytest.raises(ValueError, match=message):
            mla_decode(q, cache._replace(**change), 20, 1.0, latent)
    with pytest.raises(ValueError, match=r"^out: its shape is \[2, 4, 80\]; \[2, 4, 64\]"):
        mla_decode(q, cache, 20, 1.0, 64, out=q)
    assert run(
        q[:0], cache._replace(page_table=cache.page_table[:0], context_tokens=cache.context_tokens[:0]), 64
    ).shape == (0, 4, 64)
