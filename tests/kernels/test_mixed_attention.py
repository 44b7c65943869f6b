"""A step of decodes and prefill chunks together, against float64 and against either kernel alone."""

from itertools import accumulate

import pytest
import torch
from kernel_batches import TOLERANCE, features_of, poisoned, quantised, random_cache, random_queries, worst

from simkit.kernels.attention_features import PLAIN, AttentionFeatures
from simkit.kernels.mixed_attention import decodes_first, mixed_attention, mixed_attention_reference
from simkit.kernels.paged_cache import PagedCache
from simkit.kernels.paged_prefill import paged_prefill

# (past, tokens of this step), as a scheduler gives them: decodes, a chunk after a past, a first chunk, a prompt's last
# token, a prompt of one token, a request that was given nothing
STEP = [(40, 1), (16, 30), (0, 1), (0, 33), (63, 1), (31, 1), (12, 0), (99, 2)]


def starts_of(tokens: list[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(tokens)], dtype=torch.int32)


def run(q: torch.Tensor, step: list[tuple[int, int]], cache: PagedCache, features: AttentionFeatures) -> torch.Tensor:
    decodes = sum(tokens == 1 for _, tokens in step)
    longest = max((tokens for _, tokens in step[decodes:]), default=0)
    context = max((past + 1 for past, _ in step[:decodes]), default=0)
    starts = starts_of([tokens for _, tokens in step])
    return mixed_attention(q, starts, cache, decodes, longest, context, None, poisoned(q), features)


@pytest.mark.parametrize("fp8", [False, True], ids=["", "fp8"])
@pytest.mark.parametrize("names", [(), ("window", "soft_cap", "alibi", "sinks")], ids="+".join)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_mixed_step_matches_float64(dtype: torch.dtype, names: tuple[str, ...], fp8: bool) -> None:
    order, decodes = decodes_first([tokens for _, tokens in STEP])
    step = [STEP[i] for i in order]
    assert (decodes, [tokens for _, tokens in step]) == (4, [1, 1, 1, 1, 30, 33, 2, 0])
    cache = random_cache([past + tokens for past, tokens in step], 2, 64, 16, torch.float32 if fp8 else dtype, seed=1)
    cache = quantised(cache, True, seed=2) if fp8 else cache
    starts = starts_of([tokens for _, tokens in step])
    q = random_queries(int(starts[-1]), 6, 64, dtype, seed=3)
    features = features_of(names, 6, seed=4)
    wanted = mixed_attention_reference(q, starts, cache, None, features)
    slack = 2 * 1.5 * 2**-24 if names else 0.0  # of a score capped in f32, as in test_attention_features
    assert worst(run(q, step, cache, features), wanted) <= TOLERANCE[dtype] + slack


@pytest.mark.parametrize("step", [[(40, 1), (0, 1)], [(16, 30), (0, 2)], []], ids=["decodes", "chunks", "empty"])
def test_a_step_of_one_kind_is_that_kinds(step: list[tuple[int, int]]) -> None:
    cache = random_cache([past + tokens for past, tokens in step], 1, 64, 16, torch.float32, seed=5)
    starts = starts_of([tokens for _, tokens in step])
    q = random_queries(int(starts[-1]), 2, 64, torch.float32, seed=6)
    assert worst(run(q, step, cache, PLAIN), mixed_attention_reference(q, starts, cache)) <= TOLERANCE[torch.float32]


def test_the_order_of_requests_does_not_show() -> None:
    step = [(40, 1), (63, 1), (16, 30), (0, 33)]
    cache = random_cache([past + tokens for past, tokens in step], 1, 64, 16, torch.float32, seed=7)
    q = random_queries(65, 2, 64, torch.float32, seed=8)
    found = run(q, step, cache, PLAIN)
    back = [1, 0, 3, 2]
    table, contexts = cache.page_table[back], cache.context_tokens[back]
    turned = torch.cat([q[1:2], q[:1], q[32:], q[2:32]])
    again = run(turned, [step[i] for i in back], cache._replace(page_table=table, context_tokens=contexts), PLAIN)
    assert torch.equal(torch.cat([again[1:2], again[:1], again[35:], again[2:35]]), found)


def test_decodes_may_go_through_prefill() -> None:
    step = [(40, 1), (63, 1), (16, 30)]
    cache = random_cache([past + tokens for past, tokens in step], 2, 64, 16, torch.float32, seed=9)
    q = random_queries(32, 4, 64, torch.float32, seed=10)
    starts = starts_of([1, 1, 30])
    whole = paged_prefill(q, starts, cache, 30)
    assert worst(run(q, step, cache, PLAIN), whole.double()) <= TOLERANCE[torch.float32]


def test_bad_arguments_are_named_before_anything_is_written() -> None:
    cache = random_cache([5, 20], 2, 64, 16, torch.float32, seed=11)
    q = random_queries(4, 4, 64, torch.float32, seed=12)
    starts = starts_of([1, 3])
    out = poisoned(q)
    with pytest.raises(ValueError, match=r"^decodes: is 3; at most 2, of 2 requests"):
        mixed_attention(q, starts, cache, 3, 3, 20, out=out)
    with pytest.raises(ValueError, match=r"^max_context_tokens: is -1"):
        mixed_attention(q, starts, cache, 1, 3, -1, out=out)
    with pytest.raises(ValueError, match=r"^cache.page_table: is of 1 requests; query_starts' 2"):
        mixed_attention(q, starts, cache._replace(page_table=cache.page_table[:1]), 1, 3, 20, out=out)
    with pytest.raises(ValueError, match=r"^features.sinks: its shape is \[3\]"):
        mixed_attention(q, starts, cache, 1, 3, 20, out=out, features=AttentionFeatures(sinks=torch.zeros(3)))
    assert bool(out.isnan().all())
