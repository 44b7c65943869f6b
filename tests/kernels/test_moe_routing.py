"""Routing against float64, and the order of experts against a plain sort."""

import math

import pytest
import torch
from random_rows import normal

from simkit.kernels.moe_routing import (
    SCORES,
    ExpertOrder,
    order_by_expert,
    order_by_expert_reference,
    route,
    route_reference,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (8, 2), (60, 4), (128, 8)])
def test_choice_and_weights_match_float64(dtype: torch.dtype, score: str, experts: int, k: int) -> None:
    logits = normal((19, experts), dtype, seed=experts)
    for renormalize in (True, False):
        found = route(logits, k, score, renormalize, scale=1.5)
        weights, chosen = route_reference(logits, k, score, renormalize, scale=1.5)
        assert torch.equal(found.experts.long(), chosen)
        assert float((found.weights.double() - weights).abs().max()) <= 1e-6


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_bias_steers_the_choice_and_not_the_weight(score: str) -> None:
    logits, bias = normal((9, 16), torch.float32, seed=1), normal((16,), torch.float32, seed=2)
    found = route(logits, 4, score, bias=bias)
    weights, chosen = route_reference(logits, 4, score, bias=bias)
    assert torch.equal(found.experts.long(), chosen)
    assert float((found.weights.double() - weights).abs().max()) <= 1e-6
    assert not torch.equal(found.experts, route(logits, 4, score).experts)


def test_softmax_renormalised_is_softmax_of_the_chosen() -> None:
    logits = normal((11, 32), torch.float32, seed=3)
    first, second = route(logits, 6, "softmax"), route(logits, 6, "topk_softmax")
    assert torch.equal(first.experts, second.experts)
    assert torch.allclose(first.weights, second.weights, atol=1e-6)


def test_equal_experts_are_taken_by_number() -> None:
    found = route(torch.zeros(3, 10), 4, "softmax")
    assert found.experts.tolist() == [[0, 1, 2, 3]] * 3
    assert torch.allclose(found.weights, torch.full((3, 4), 0.25))


@pytest.mark.parametrize("score", SCORES)
def test_huge_and_excluded_logits_stay_finite(score: str) -> None:
    logits = torch.tensor([[-1e4, 1e4, 0.0, 9e3], [-math.inf, 1.0, -math.inf, -math.inf]])
    found = route(logits, 1, score)
    assert found.experts.tolist() == [[1], [1]]
    assert bool(found.weights.isfinite().all())


def rows_and_blocks(order: ExpertOrder) -> tuple[list[int], list[int]]:
    """What the order says, without what follows the last block, which must be filler."""
    blocks = [expert for expert in order.block_expert.tolist() if expert >= 0]
    rows = order.rows.tolist()
    assert order.block_expert.tolist()[len(blocks) :] == [-1] * (len(order.block_expert) - len(blocks))
    assert set(rows[len(blocks) * order.block_rows :]) <= {order.pairs}
    return rows[: len(blocks) * order.block_rows], blocks


@pytest.mark.parametrize("block_rows", [1, 16, 64])
@pytest.mark.parametrize(("tokens", "k", "experts"), [(1, 1, 1), (1, 8, 64), (30, 2, 8), (600, 2, 5), (7, 3, 100)])
def test_pairs_are_sorted_by_expert_and_filled_up(tokens: int, k: int, experts: int, block_rows: int) -> None:
    chosen = torch.randint(0, experts, (tokens, k), generator=torch.Generator().manual_seed(tokens)).int()
    order = order_by_expert(chosen, experts, block_rows)
    assert rows_and_blocks(order) == order_by_expert_reference(chosen, block_rows)


def test_one_expert_may_get_all() -> None:
    order = order_by_expert(torch.full((40, 1), 3, dtype=torch.int32), 4, 16)
    rows, blocks = rows_and_blocks(order)
    assert rows == [*range(40), *[40] * 8]
    assert blocks == [3, 3, 3]


def test_nothing_to_do_is_done() -> None:
    assert route(torch.zeros(0, 8), 2, "softmax").experts.shape == (0, 2)
    assert len(order_by_expert(torch.zeros(0, 2, dtype=torch.int32), 8, 16).rows) == 0


def test_bad_arguments_are_named() -> None:
    logits = torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"^k: is 9; at most the 8"):
        route(logits, 9, "softmax")
    with pytest.raises(ValueError, match=r"^k: is 0"):
        route(logits, 0, "softmax")
    with pytest.raises(ValueError, match=r"^score: is 'tanh'"):
        route(logits, 2, "tanh")
    with pytest.raises(ValueError, match=r"^bias: its shape is \[7\]; \[8\]"):
        route(logits, 2, "sigmoid", bias=torch.zeros(7))
    with pytest.raises(ValueError, match=r"^logits: 2000 experts"):
        route(torch.zeros(1, 2000), 2, "softmax")
    with pytest.raises(ValueError, match=r"^experts: its dtype is torch.int64"):
        order_by_expert(torch.zeros(2, 2).long(), 4, 16)
    with pytest.raises(ValueError, match=r"^experts: its strides are"):
        order_by_expert(torch.zeros(2, 4).int()[:, :2], 4, 16)
    with pytest.raises(ValueError, match=r"^block_rows: is 24"):
        order_by_expert(torch.zeros(2, 2).int(), 4, 24)
