"""Chunked prefill attention against float64, element by element."""

import math
from itertools import accumulate

import pytest
import torch
from kernel_batches import TOLERANCE, moved, poisoned, random_cache, random_queries, worst

from simkit.kernels.paged_cache import PagedCache
from simkit.kernels.paged_decode import paged_decode
from simkit.kernels.paged_prefill import paged_prefill, paged_prefill_reference

# (past, chunk): empty requests, single tokens, page and tile boundaries, all in one batch
PARTS = [(0, 1), (0, 0), (9, 0), (16, 16), (0, 64), (63, 2), (31, 40), (100, 1)]


def starts_of(chunks: list[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(chunks)], dtype=torch.int32)


def run(q: torch.Tensor, starts: torch.Tensor, cache: PagedCache, scale: float | None = None) -> torch.Tensor:
    longest = int(starts.diff().max()) if len(starts) > 1 else 0
    return paged_prefill(q, starts, cache, longest, scale, out=poisoned(q))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "page_tokens"), [(2, 2, 16), (6, 2, 64), (7, 1, 16)], ids=["MHA", "GQA", "MQA"]
)
def test_chunks_after_a_past_match_float64(dtype: torch.dtype, q_heads: int, kv_heads: int, page_tokens: int) -> None:
    starts = starts_of([chunk for _, chunk in PARTS])
    cache = random_cache([past + chunk for past, chunk in PARTS], kv_heads, 64, page_tokens, dtype, seed=1)
    q = random_queries(int(starts[-1]), q_heads, 64, dtype, seed=2)
    assert worst(run(q, starts, cache), paged_prefill_reference(q, starts, cache)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
def test_any_head_size_matches_float64(head_dim: int) -> None:
    starts = starts_of([3, 20])
    cache = random_cache([40, 20], 1, head_dim, 16, torch.float16, seed=3)
    q = random_queries(23, 2, head_dim, torch.float16, seed=4)
    assert worst(run(q, starts, cache), paged_prefill_reference(q, starts, cache)) <= TOLERANCE[torch.float16]


def test_a_prompt_in_chunks_is_the_prompt_in_one_pass() -> None:
    cache = random_cache([90], 2, 64, 16, torch.float32, seed=5)
    q = random_queries(90, 4, 64, torch.float32, seed=6)
    whole = run(q, starts_of([90]), cache)
    begin = 0
    for chunk in (1, 16, 40, 33):
        so_far = cache._replace(context_tokens=torch.tensor([begin + chunk], dtype=torch.int32))
        part = run(q[begin : begin + chunk], starts_of([chunk]), so_far)
        assert worst(part, whole[begin : begin + chunk].double()) <= TOLERANCE[torch.float32]
        begin += chunk


def test_a_chunk_of_one_is_a_decode() -> None:
    cache = random_cache([1, 50, 64], 2, 64, 16, torch.float32, seed=7)
    q = random_queries(3, 4, 64, torch.float32, seed=8)
    decoded = paged_decode(q, cache, 64)
    assert worst(run(q, starts_of([1, 1, 1]), cache), decoded.double()) <= TOLERANCE[torch.float32]


def test_a_later_token_never_changes_an_earlier_output() -> None:
    cache = random_cache([45], 1, 64, 16, torch.float32, seed=9)
    q = random_queries(40, 2, 64, torch.float32, seed=10)  # positions 5 .. 44
    before = run(q, starts_of([40]), cache)
    page = int(cache.page_table[0, 1])  # positions 16 .. 31
    cache.k[page, 4:] = 1e30
    cache.v[page, 4:] = 1e30
    after = run(q, starts_of([40]), cache)
    assert torch.equal(after[:15], before[:15]), "positions 5 to 19 do not see position 20"
    assert not torch.equal(after[15], before[15]), "position 20 sees itself"


def test_the_place_of_pages_does_not_show() -> None:
    cache = random_cache([20, 70], 2, 64, 16, torch.float16, seed=11)
    q = random_queries(50, 4, 64, torch.float16, seed=12)
    starts = starts_of([20, 30])
    assert torch.equal(run(q, starts, cache), run(q, starts, moved(cache, seed=13)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_softmax_survives_huge_scores(dtype: torch.dtype) -> None:
    cache = random_cache([96], 1, 64, 16, dtype, seed=14)
    q = torch.zeros(40, 2, 64, dtype=dtype)
    q[:, :, 0] = 100.0
    for token, score in enumerate(torch.linspace(100, -100, 96).tolist()):
        cache.k[cache.page_table[0, token // 16], token % 16, 0, 0] = score
    starts = starts_of([40])
    found = run(q, starts, cache, scale=1.0)
    assert worst(found, paged_prefill_reference(q, starts, cache, scale=1.0)) <= TOLERANCE[dtype]


def test_rows_of_no_request_are_left_alone() -> None:
    cache = random_cache([4], 1, 64, 16, torch.float32, seed=15)
    q = random_queries(6, 2, 64, torch.float32, seed=16)
    found = run(q, starts_of([4]), cache)
    assert not bool(found[:4].isnan().any())
    assert bool(found[4:].isnan().all())


def test_nothing_to_do_is_done() -> None:
    cache = random_cache([], 1, 64, 16, torch.float32, seed=17)
    q = random_queries(0, 2, 64, torch.float32, seed=18)
    assert run(q, starts_of([]), cache).shape == (0, 2, 64)


def test_bad_arguments_are_named() -> None:
    cache = random_cache([4, 9], 2, 64, 16, torch.float32, seed=19)
    q = random_queries(5, 4, 64, torch.float32, seed=20)
    starts = starts_of([2, 3])
    with pytest.raises(ValueError, match=r"^query_starts: its dtype is torch.int64"):
        paged_prefill(q, starts.long(), cache, 3)
    with pytest.raises(ValueError, match=r"^query_starts: is empty"):
        paged_prefill(q, starts[:0], cache, 3)
    with pytest.raises(ValueError, match=r"^cache.page_table: its shape is \[2, 2\]; \[1, any\]"):
        paged_prefill(q, starts[:2], cache, 3)
    with pytest.raises(ValueError, match=r"^max_query_tokens: is -3"):
        paged_prefill(q, starts, cache, -3)
    with pytest.raises(ValueError, match=r"^out: its shape"):
        paged_prefill(q, starts, cache, 3, out=q[:4])
    one = cache._replace(k=cache.k[:, :, :1], v=cache.v[:, :, :1])
    with pytest.raises(ValueError, match=r"^q: 129 query heads a key-value head; at most 128"):
        paged_prefill(torch.zeros(5, 129, 64), starts, one, 3)
    assert math.isfinite(float(paged_prefill(q, starts, cache, 3).sum()))
