"""Decode attention against float64, element by element."""

import math

import pytest
import torch
from kernel_batches import TOLERANCE, moved, poisoned, random_cache, random_queries, worst

from simkit.kernels.paged_cache import PagedCache, check_contents
from simkit.kernels.paged_decode import paged_decode, paged_decode_reference
from simkit.kernels.split_kv import MAX_SPLITS, choose_split_tokens

ODD_CONTEXTS = [0, 1, 15, 16, 17, 63, 64, 65, 130]


def run(
    q: torch.Tensor, cache: PagedCache, split_tokens: int | None = None, scale: float | None = None
) -> torch.Tensor:
    longest = int(cache.context_tokens.max()) if len(cache.context_tokens) else 0
    return paged_decode(q, cache, longest, scale, split_tokens, out=poisoned(q))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("page_tokens", [16, 64])
@pytest.mark.parametrize(("q_heads", "kv_heads"), [(2, 2), (6, 2), (5, 1)], ids=["MHA", "GQA", "MQA"])
def test_ragged_contexts_match_float64(dtype: torch.dtype, page_tokens: int, q_heads: int, kv_heads: int) -> None:
    cache = random_cache(ODD_CONTEXTS, kv_heads, 64, page_tokens, dtype, seed=1)
    q = random_queries(len(ODD_CONTEXTS), q_heads, 64, dtype, seed=2)
    found = run(q, cache, split_tokens=64)
    assert worst(found, paged_decode_reference(q, cache)) <= TOLERANCE[dtype]
    assert torch.equal(found[0], torch.zeros_like(found[0])), "a request with no context has output 0"


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
def test_any_head_size_matches_float64(head_dim: int) -> None:
    cache = random_cache([1, 33, 70], 1, head_dim, 16, torch.float16, seed=3)
    q = random_queries(3, 4, head_dim, torch.float16, seed=4)
    assert worst(run(q, cache, 32), paged_decode_reference(q, cache)) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("q_heads", [17, 71, 128])
def test_groups_larger_than_a_tile_match_float64(q_heads: int) -> None:
    cache = random_cache([40, 3], 1, 32, 16, torch.float32, seed=5)
    q = random_queries(2, q_heads, 32, torch.float32, seed=6)
    assert worst(run(q, cache), paged_decode_reference(q, cache)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("split_tokens", [1, 16, 50, 63, 64, 1000, None])
def test_the_number_of_parts_does_not_show(split_tokens: int | None) -> None:
    cache = random_cache([0, 1, 100, 64], 2, 64, 16, torch.float32, seed=7)
    q = random_queries(4, 4, 64, torch.float32, seed=8)
    assert worst(run(q, cache, split_tokens), paged_decode_reference(q, cache)) <= TOLERANCE[torch.float32]


def test_the_place_of_pages_does_not_show() -> None:
    cache = random_cache([5, 100, 48], 2, 64, 16, torch.float16, seed=9)
    q = random_queries(3, 4, 64, torch.float16, seed=10)
    assert torch.equal(run(q, cache, 64), run(q, moved(cache, seed=11), 64))


def test_a_shared_page_serves_both_requests() -> None:
    cache = random_cache([32, 40], 1, 64, 16, torch.float32, seed=12)
    cache.page_table[1, :2] = cache.page_table[0, :2]  # a common prefix
    q = random_queries(1, 2, 64, torch.float32, seed=13).repeat(2, 1, 1)
    found = run(q, cache)
    assert worst(found, paged_decode_reference(q, cache)) <= TOLERANCE[torch.float32]
    assert not torch.equal(found[0], found[1]), "the second request reads 8 tokens more"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_softmax_survives_huge_scores(dtype: torch.dtype) -> None:
    # scores from -1e4 to 1e4: the exponential of any of them alone over- or underflows
    cache = random_cache([96], 1, 64, 16, dtype, seed=14)
    q = torch.zeros(1, 2, 64, dtype=dtype)
    q[:, :, 0] = 100.0
    for token, score in enumerate(torch.linspace(-100, 100, 96).tolist()):
        cache.k[cache.page_table[0, token // 16], token % 16, 0, 0] = score
    found = run(q, cache, split_tokens=32, scale=1.0)
    assert worst(found, paged_decode_reference(q, cache, scale=1.0)) <= TOLERANCE[dtype]


def test_one_key_far_above_the_rest_takes_all_weight() -> None:
    cache = random_cache([70], 1, 64, 16, torch.float32, seed=15)
    keys, values = cache.request(0)
    page, offset = int(cache.page_table[0, 2]), 5
    cache.k[page, offset, 0] = 1e3 * torch.sign(keys[0, 0]).float()
    q = torch.sign(keys[0, 0]).float().reshape(1, 1, 64)
    assert worst(run(q, cache, 32)[0, 0], values[37, 0]) == 0.0


def test_a_token_beyond_the_context_never_changes_an_output() -> None:
    cache = random_cache([37, 20], 2, 64, 16, torch.float32, seed=16)
    q = random_queries(2, 2, 64, torch.float32, seed=17)
    before = run(q, cache, 16)
    cache.k[cache.page_table[0, 2], 5:] = 1e30
    cache.v[cache.page_table[0, 2], 5:] = math.inf
    assert torch.equal(run(q, cache, 16), before)


def test_an_empty_batch_is_served() -> None:
    cache = random_cache([], 1, 64, 16, torch.float32, seed=18)
    assert run(random_queries(0, 2, 64, torch.float32, seed=19), cache).shape == (0, 2, 64)


def test_queries_and_outputs_may_be_slices() -> None:
    cache = random_cache([20, 33], 1, 64, 16, torch.float32, seed=20)
    wide = random_queries(2, 6, 64, torch.float32, seed=21)
    q, out = wide[:, 2:4], poisoned(wide)
    paged_decode(q, cache, 33, out=out[:, 4:])
    assert worst(out[:, 4:], paged_decode_reference(q, cache)) <= TOLERANCE[torch.float32]
    assert bool(out[:, :4].isnan().all()), "nothing is written beside the output"


def test_parts_fill_the_processors_and_stay_few() -> None:
    # one request of 128k tokens and 8 heads on 132 processors: 4 programs each, 66 parts
    assert choose_split_tokens(1, 8, 131_072, 132, 64) == 31 * 64 + 64  # ceil(131072 / 66 / 64) = 32 tiles
    # a full machine is not cut up; a short context is not either
    assert choose_split_tokens(256, 8, 4096, 132, 64) == 4096
    assert choose_split_tokens(1, 8, 200, 132, 64) == 256
    assert math.ceil(1_000_000 / choose_split_tokens(1, 1, 1_000_000, 1000, 64)) <= MAX_SPLITS


GOOD_Q = random_queries(2, 4, 64, torch.float32, seed=22)


def good_cache() -> PagedCache:
    return random_cache([5, 20], 2, 64, 16, torch.float32, seed=23)


@pytest.mark.parametrize(
    ("q", "change", "message"),
    [
        (GOOD_Q[0], {}, r"^q: its shape is \[4, 64\]"),
        (GOOD_Q.double(), {}, "^q: its dtype is torch.float64"),
        (GOOD_Q.transpose(1, 2).contiguous().transpose(1, 2), {}, "^q: its last stride is 4"),
        (GOOD_Q[:, :3], {}, "^q: 3 query heads"),
        (GOOD_Q.to("meta"), {}, "^cache.k: is on cpu"),
        (GOOD_Q.half(), {}, "^cache.k: its dtype is torch.float32; the queries' torch.float16"),
        (GOOD_Q[:1], {}, r"^cache.page_table: its shape is \[2, 3\]; \[1, any\]"),
        (GOOD_Q, {"v": torch.zeros(5, 16, 2, 32)}, "^cache.v: its shape"),
        (GOOD_Q, {"page_table": torch.zeros(2, 3, dtype=torch.int64)}, "^cache.page_table: its dtype is torch.int64"),
        (GOOD_Q, {"context_tokens": torch.zeros(3, dtype=torch.int32)}, "^cache.context_tokens: its shape"),
        (GOOD_Q, {"k": torch.zeros(5, 8, 2, 64), "v": torch.zeros(5, 8, 2, 64)}, "^cache.k: pages of 8 tokens"),
        (GOOD_Q, {"v": torch.zeros(5, 2, 16, 64).transpose(1, 2)}, "^cache.v: its strides"),
    ],
)
def test_bad_arguments_are_named(q: torch.Tensor, change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paged_decode(q, good_cache()._replace(**change), 20)


def test_bad_numbers_and_outputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"^max_context_tokens: is -1"):
        paged_decode(GOOD_Q, good_cache(), -1)
    with pytest.raises(ValueError, match=r"^split_tokens: is 0"):
        paged_decode(GOOD_Q, good_cache(), 20, split_tokens=0)
    with pytest.raises(ValueError, match=r"^split_tokens: 1 makes 1000 parts"):
        paged_decode(GOOD_Q, good_cache(), 1000, split_tokens=1)
    with pytest.raises(ValueError, match=r"^out: its dtype is torch.float16"):
        paged_decode(GOOD_Q, good_cache(), 20, out=GOOD_Q.half())


def test_contents_out_of_range_are_named_where_one_may_wait() -> None:
    with pytest.raises(ValueError, match=r"^cache.context_tokens\[1\]: is 20; 0 to 19"):
        check_contents(good_cache(), 19)
    cache = good_cache()
    cache.page_table[1, 1] = 99
    with pytest.raises(ValueError, match=r"^cache.page_table\[1\]: names a page outside of 0 to 4"):
        check_contents(cache, 20)
