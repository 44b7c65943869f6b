"""Window, soft-cap, ALiBi, sinks and fp8 caches in decode and prefill, against float64, element by element."""

import math
from itertools import accumulate

import pytest
import torch
from kernel_batches import TOLERANCE, features_of, poisoned, quantised, random_cache, random_queries, worst

from simkit.kernels.attention_features import PLAIN, AttentionFeatures, Mask, attention_reference
from simkit.kernels.paged_cache import FP8, PagedCache
from simkit.kernels.paged_decode import paged_decode, paged_decode_reference
from simkit.kernels.paged_prefill import paged_prefill, paged_prefill_reference

CONTEXTS = [0, 1, 20, 21, 22, 64, 97]
# (past, chunk) around a window of 21 and tiles of 16 or 64 keys
PARTS = [(0, 1), (0, 0), (20, 2), (16, 30), (0, 64), (80, 17)]
ALONE = [(), ("window",), ("soft_cap",), ("alibi",), ("sinks",)]
TOGETHER = [("window", "soft_cap"), ("window", "sinks"), ("alibi", "sinks"), ("window", "soft_cap", "alibi", "sinks")]
# tanh is 1 less a quotient near 1: half a unit of f32 there, times 2 cap, of a score, is that much of a weight
F32_CAPPED = TOLERANCE[torch.float32] + 2 * 1.5 * 2**-24


def tolerance_of(dtype: torch.dtype, names: tuple[str, ...]) -> float:
    return F32_CAPPED if dtype == torch.float32 and "soft_cap" in names else TOLERANCE[dtype]


def decoded(
    q: torch.Tensor, cache: PagedCache, features: AttentionFeatures, split_tokens: int | None = None
) -> torch.Tensor:
    longest = int(cache.context_tokens.max())
    return paged_decode(q, cache, longest, None, split_tokens, poisoned(q), features)


def starts_of(chunks: list[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(chunks)], dtype=torch.int32)


def prefilled(
    q: torch.Tensor, starts: torch.Tensor, cache: PagedCache, features: AttentionFeatures, mask: Mask = "causal"
) -> torch.Tensor:
    return paged_prefill(q, starts, cache, int(starts.diff().max()), None, poisoned(q), features, mask)


@pytest.mark.parametrize("names", ALONE[1:] + TOGETHER, ids="+".join)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_decode_with_features_matches_float64(dtype: torch.dtype, names: tuple[str, ...]) -> None:
    cache = random_cache(CONTEXTS, 2, 64, 16, dtype, seed=1)
    q = random_queries(len(CONTEXTS), 6, 64, dtype, seed=2)
    features = features_of(names, 6, seed=3)
    wanted = paged_decode_reference(q, cache, None, features)
    for split_tokens in (16, 1000):  # several parts, one part
        assert worst(decoded(q, cache, features, split_tokens), wanted) <= tolerance_of(dtype, names)
    assert worst(paged_decode_reference(q, cache), wanted) > 0.05, "the features change the result"


@pytest.mark.parametrize("names", ALONE[1:] + TOGETHER, ids="+".join)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_prefill_with_features_matches_float64(dtype: torch.dtype, names: tuple[str, ...]) -> None:
    starts = starts_of([chunk for _, chunk in PARTS])
    cache = random_cache([past + chunk for past, chunk in PARTS], 2, 64, 16, dtype, seed=4)
    q = random_queries(int(starts[-1]), 6, 64, dtype, seed=5)
    features = features_of(names, 6, seed=6)
    wanted = paged_prefill_reference(q, starts, cache, None, features)
    assert worst(prefilled(q, starts, cache, features), wanted) <= tolerance_of(dtype, names)
    assert worst(paged_prefill_reference(q, starts, cache), wanted) > 0.05, "the features change the result"


@pytest.mark.parametrize("names", [(), ("window",), ("alibi",), ("window", "soft_cap", "sinks")], ids="+".join)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_an_encoder_matches_float64(dtype: torch.dtype, names: tuple[str, ...]) -> None:
    lengths = [1, 0, 15, 64, 97]
    starts = starts_of(lengths)
    cache = random_cache(lengths, 2, 64, 16, dtype, seed=7)
    q = random_queries(int(starts[-1]), 4, 64, dtype, seed=8)
    features = features_of(names, 4, seed=9)
    wanted = paged_prefill_reference(q, starts, cache, None, features, "bidirectional")
    assert worst(prefilled(q, starts, cache, features, "bidirectional"), wanted) <= tolerance_of(dtype, names)


@pytest.mark.parametrize("names", [(), ("soft_cap", "sinks")], ids="+".join)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_queries_over_another_sequence_match_float64(dtype: torch.dtype, names: tuple[str, ...]) -> None:
    starts = starts_of([5, 3, 0, 70, 1])
    cache = random_cache([65, 0, 7, 16, 100], 2, 64, 16, dtype, seed=10)  # shorter and longer than the queries
    q = random_queries(int(starts[-1]), 4, 64, dtype, seed=11)
    features = features_of(names, 4, seed=12)
    found = prefilled(q, starts, cache, features, "cross")
    wanted = paged_prefill_reference(q, starts, cache, None, features, "cross")
    assert worst(found, wanted) <= tolerance_of(dtype, names)
    assert torch.equal(found[5:8], torch.zeros_like(found[5:8])), "an empty sequence gives 0"


@pytest.mark.parametrize("per_head", [False, True], ids=["tensor", "head"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_fp8_caches_match_float64(dtype: torch.dtype, per_head: bool) -> None:
    starts = starts_of([chunk for _, chunk in PARTS])
    for names in ((), ("window", "soft_cap", "alibi", "sinks")):
        features = features_of(names, 6, seed=13)
        cache = quantised(random_cache(CONTEXTS, 2, 64, 16, torch.float32, seed=14), per_head, seed=15)
        q = random_queries(len(CONTEXTS), 6, 64, dtype, seed=16)
        wanted = paged_decode_reference(q, cache, None, features)
        assert worst(decoded(q, cache, features, 16), wanted) <= tolerance_of(dtype, names)
        chunked = random_cache([past + chunk for past, chunk in PARTS], 2, 64, 16, torch.float32, seed=17)
        chunked = quantised(chunked, per_head, seed=18)
        q = random_queries(int(starts[-1]), 6, 64, dtype, seed=19)
        wanted = paged_prefill_reference(q, starts, chunked, None, features)
        assert worst(prefilled(q, starts, chunked, features), wanted) <= tolerance_of(dtype, names)


def test_an_fp8_cache_without_scales_holds_its_values() -> None:
    cache = random_cache([33], 1, 64, 16, torch.float32, seed=20)
    cache = cache._replace(k=cache.k.to(FP8), v=cache.v.to(FP8))
    q = random_queries(1, 2, 64, torch.float32, seed=21)
    widened = cache._replace(k=cache.k.float(), v=cache.v.float())
    assert torch.equal(decoded(q, cache, PLAIN), decoded(q, widened, PLAIN))


def test_a_token_outside_of_the_window_never_changes_an_output() -> None:
    features = AttentionFeatures(window_tokens=20)
    cache = random_cache([90], 1, 64, 16, torch.float32, seed=22)
    q = random_queries(30, 2, 64, torch.float32, seed=23)  # positions 60 .. 89, the first sees 41 on
    last, starts = q[-1:], starts_of([30])
    before = prefilled(q, starts, cache, features), decoded(last, cache, features, 16)
    poison(cache, range(41), math.nan)
    cache.page_table[0, :2] = 1 << 30  # pages wholly outside of the window may be another's by now
    assert torch.equal(prefilled(q, starts, cache, features), before[0])
    poison(cache, range(41, 70), math.inf)
    assert torch.equal(decoded(last, cache, features, 16), before[1]), "the last query sees position 70 on"
    poison(cache, range(70, 71), 1e30)
    assert not torch.equal(decoded(last, cache, features, 16), before[1])


def poison(cache: PagedCache, tokens: range, value: float) -> None:
    for token in tokens:
        page = int(cache.page_table[0, token // cache.page_tokens])
        cache.k[page, token % cache.page_tokens] = value
        cache.v[page, token % cache.page_tokens] = value


def test_a_window_of_one_sees_only_itself() -> None:
    cache = random_cache([40], 1, 64, 16, torch.float32, seed=24)
    q = random_queries(40, 2, 64, torch.float32, seed=25)
    features = AttentionFeatures(window_tokens=1)
    values = cache.request(0)[1].float().expand(40, 2, 64)
    assert torch.equal(prefilled(q, starts_of([40]), cache, features), values)
    assert torch.equal(decoded(q[-1:], cache, features, 16), values[-1:])


@pytest.mark.parametrize("window", [15, 16, 17, 33, 64, 65, 96, 97, 500])
def test_any_window_matches_float64(window: int) -> None:
    features = AttentionFeatures(window_tokens=window)
    cache = random_cache([97, 30], 1, 64, 16, torch.float32, seed=26)
    q = random_queries(60, 2, 64, torch.float32, seed=27)
    starts = starts_of([40, 20])
    for mask in ("causal", "bidirectional"):
        wanted = paged_prefill_reference(q, starts, cache, None, features, mask)
        assert worst(prefilled(q, starts, cache, features, mask), wanted) <= TOLERANCE[torch.float32]
    last = q[[39, 59]]
    wanted = paged_decode_reference(last, cache, None, features)
    assert worst(decoded(last, cache, features, 16), wanted) <= TOLERANCE[torch.float32]


def test_huge_scores_survive_every_feature() -> None:
    # scores from -1e4 to 1e4; the cap brings them to +-1e3, ALiBi and sinks add to that
    features = features_of(("alibi", "sinks"), 2, seed=28)._replace(soft_cap=1e3)
    cache = random_cache([96], 1, 64, 16, torch.float32, seed=29)
    q = torch.zeros(40, 2, 64)
    q[:, :, 0] = 800.0
    for token, score in enumerate(torch.linspace(100, -100, 96).tolist()):
        cache.k[cache.page_table[0, token // 16], token % 16, 0, 0] = score
    starts = starts_of([40])
    for each in (features, features._replace(sinks=torch.tensor([1e4, -1e4])), AttentionFeatures(sinks=features.sinks)):
        found = prefilled(q, starts, cache, each)
        # 1e3 has 2^-14 of absolute error in f32, and so has a weight
        assert worst(found, paged_prefill_reference(q, starts, cache, None, each)) <= 1e3 * 2**-23 * 4
        found = decoded(q[-1:], cache, each, 32)
        assert worst(found, paged_decode_reference(q[-1:], cache, None, each)) <= 1e3 * 2**-23 * 4


def test_a_sink_is_a_key_of_its_score_and_of_value_zero() -> None:
    cache = random_cache([30], 1, 64, 16, torch.float32, seed=30)
    q = random_queries(1, 1, 64, torch.float32, seed=31)
    key, value = cache.request(0)
    extra = q[0].double() / (q[0].double() ** 2).sum() * 3.0 * 64**0.5  # scores 3
    keys, values = torch.cat([extra[None], key]), torch.cat([torch.zeros(1, 1, 64).double(), value])
    wanted = attention_reference(q, keys, values, torch.tensor([30]))
    found = decoded(q, cache, AttentionFeatures(sinks=torch.tensor([3.0])), 16)
    assert worst(found, wanted) <= TOLERANCE[torch.float32]


def test_the_reference_is_torchs_attention() -> None:
    # what `attention_reference` and torch both know: scale, groups, causal and any mask, a bias of each head
    random = torch.Generator().manual_seed(37)
    q, k, v = (torch.randn(n, h, 64, generator=random).double() for n, h in ((20, 6), (50, 2), (50, 2)))
    slopes = torch.rand(6, generator=random)
    ahead = torch.arange(50)[None, :] - torch.arange(30, 50)[:, None]
    bias = (slopes.double()[:, None, None] * ahead).masked_fill((ahead > 0) | (ahead <= -21), -math.inf)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], bias, scale=0.3, enable_gqa=True
    )[0].transpose(0, 1)
    features = AttentionFeatures(window_tokens=21, alibi_slopes=slopes)
    assert worst(attention_reference(q, k, v, torch.arange(30, 50), 0.3, features), wanted) < 1e-12


def test_bad_features_are_named() -> None:
    cache = random_cache([5, 20], 2, 64, 16, torch.float32, seed=32)
    q = random_queries(2, 4, 64, torch.float32, seed=33)
    for features, message in (
        (AttentionFeatures(window_tokens=0), r"^features.window_tokens: is 0; a whole number >= 1"),
        (AttentionFeatures(soft_cap=0.0), r"^features.soft_cap: is 0.0; a finite number above 0"),
        (AttentionFeatures(sinks=torch.zeros(3)), r"^features.sinks: its shape is \[3\]; \[4\]"),
        (AttentionFeatures(alibi_slopes=torch.zeros(4).half()), r"^features.alibi_slopes: its dtype is torch.float16"),
    ):
        with pytest.raises(ValueError, match=message):
            paged_decode(q, cache, 20, features=features)
        with pytest.raises(ValueError, match=message):
            paged_prefill(q, starts_of([1, 1]), cache, 1, features=features)
    with pytest.raises(ValueError, match=r"^features.window_tokens: keys of another sequence"):
        paged_prefill(q, starts_of([1, 1]), cache, 1, features=AttentionFeatures(window_tokens=3), mask="cross")
    with pytest.raises(ValueError, match=r"^mask: is 'prefix'"):
        paged_prefill(q, starts_of([1, 1]), cache, 1, mask="prefix")  # type: ignore[arg-type]


def test_bad_scales_are_named() -> None:
    cache = random_cache([5, 20], 2, 64, 16, torch.float32, seed=34)
    q = random_queries(2, 4, 64, torch.float32, seed=35)
    one = torch.ones(1)
    narrow = quantised(cache, True, seed=36)
    for wrong, message in (
        (cache._replace(k_scale=one), r"^cache.k_scale: is given for a cache of torch.float32"),
        (narrow._replace(v_scale=torch.ones(3)), r"^cache.v_scale: has 3 entries; 1 or one a head, 2"),
        (narrow._replace(k_scale=one.half()), r"^cache.k_scale: its dtype is torch.float16"),
        (narrow._replace(v=cache.v), r"^cache.v: its dtype is torch.float32; cache.k's torch.float8_e4m3fn"),
        (cache._replace(k=cache.k.half()), r"^cache.k: its dtype is torch.float16; the queries' torch.float32 or"),
    ):
        with pytest.raises(ValueError, match=message):
            paged_decode(q, wrong, 20)
