"""The products of a mixture of experts against float64, element by element."""

import pytest
import torch
from kernel_batches import TOLERANCE, worst
from random_rows import normal

from simkit.kernels.moe_gemm import (
    GroupedGemmConfig,
    combine,
    combine_reference,
    grouped_gemm,
    grouped_gemm_config,
    grouped_gemm_reference,
)
from simkit.kernels.moe_routing import order_by_expert

SMALL = GroupedGemmConfig(16, 32, 32, 4, 2)


def chosen_experts(tokens: int, k: int, experts: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(experts, generator=random)[:k] for _ in range(tokens)]).int()


def nan_like(pairs: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((pairs, columns), float("nan"), dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("tokens", "n_in", "n_out"), [(1, 32, 32), (21, 48, 40), (5, 200, 33)])
def test_a_row_a_token_matches_float64(dtype: torch.dtype, tokens: int, n_in: int, n_out: int) -> None:
    experts = chosen_experts(tokens, 2, 5, seed=tokens)
    x, weights = normal((tokens, n_in), dtype, seed=1), normal((5, n_out, n_in), dtype, seed=2, scale=n_in**-0.5)
    order = order_by_expert(experts, 5, SMALL.block_rows)
    found = grouped_gemm(x, weights, order, SMALL, 2, out=nan_like(2 * tokens, n_out, dtype))
    assert worst(found, grouped_gemm_reference(x, weights, experts, 2)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_row_a_pair_with_bias_matches_float64(dtype: torch.dtype) -> None:
    experts = chosen_experts(12, 3, 4, seed=3)
    x, weights = normal((36, 64), dtype, seed=4), normal((4, 50, 64), dtype, seed=5, scale=0.125)
    bias = normal((4, 50), dtype, seed=6)
    order = order_by_expert(experts, 4, SMALL.block_rows)
    found = grouped_gemm(x, weights, order, SMALL, 1, bias, nan_like(36, 50, dtype))
    assert worst(found, grouped_gemm_reference(x, weights, experts, 1, bias)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [1, 40, 200])
def test_shipped_configurations_match_float64(tokens: int) -> None:
    experts = chosen_experts(tokens, 1, 2, seed=7)
    x, weights = normal((tokens, 96), torch.float16, seed=8), normal((2, 70, 96), torch.float16, seed=9, scale=0.1)
    config = grouped_gemm_config(tokens, 2, torch.float16, x.device)
    order = order_by_expert(experts, 2, config.block_rows)
    found = grouped_gemm(x, weights, order, config, 1, out=nan_like(tokens, 70, torch.float16))
    assert worst(found, grouped_gemm_reference(x, weights, experts, 1)) <= TOLERANCE[torch.float16]


def test_an_expert_that_nobody_chose_is_not_read() -> None:
    experts = torch.tensor([[0], [2]], dtype=torch.int32)
    x, weights = normal((2, 32), torch.float32, seed=10), normal((3, 32, 32), torch.float32, seed=11, scale=0.2)
    weights[1] = float("nan")
    found = grouped_gemm(x, weights, order_by_expert(experts, 3, 16), SMALL, 1)
    assert worst(found, grouped_gemm_reference(x, weights, experts, 1)) <= TOLERANCE[torch.float32]


def test_only_a_tokens_own_row_is_read() -> None:
    experts = torch.zeros(20, 1, dtype=torch.int32)
    x, weights = normal((20, 32), torch.float32, seed=12), normal((1, 32, 32), torch.float32, seed=13)
    order = order_by_expert(experts, 1, 16)
    before = grouped_gemm(x, weights, order, SMALL, 1)
    x[7] = float("nan")
    after = grouped_gemm(x, weights, order, SMALL, 1)
    others = [row for row in range(20) if row != 7]
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("k", "columns"), [(1, 5), (2, 1024), (8, 1500)])
def test_the_weighted_sum_matches_float64(dtype: torch.dtype, k: int, columns: int) -> None:
    z, weights = normal((4 * k, columns), dtype, seed=14), torch.softmax(normal((4, k), torch.float32, seed=15), 1)
    found = combine(z, weights, nan_like(4, columns, dtype))
    assert worst(found, combine_reference(z, weights)) <= TOLERANCE[dtype]


def test_nothing_to_do_is_done() -> None:
    order = order_by_expert(torch.zeros(0, 2, dtype=torch.int32), 4, 16)
    assert grouped_gemm(torch.zeros(0, 8), torch.zeros(4, 6, 8), order, SMALL, 2).shape == (0, 6)
    assert combine(torch.zeros(0, 8), torch.zeros(0, 2)).shape == (0, 8)


def test_bad_arguments_are_named() -> None:
    order = order_by_expert(torch.zeros(4, 2, dtype=torch.int32), 4, 16)
    x, weights = torch.zeros(4, 8), torch.zeros(4, 6, 8)
    with pytest.raises(ValueError, match=r"^pairs_per_row: is 3"):
        grouped_gemm(x, weights, order, SMALL, 3)
    with pytest.raises(ValueError, match=r"^x: its shape is \[4, 8\]; \[8, any\]"):
        grouped_gemm(x, weights, order, SMALL, 1)
    with pytest.raises(ValueError, match=r"^weights: its dtype is torch.float16"):
        grouped_gemm(x, weights.half(), order, SMALL, 2)
    with pytest.raises(ValueError, match=r"^config: tiles of 32 rows"):
        grouped_gemm(x, weights, order, SMALL._replace(block_rows=32), 2)
    with pytest.raises(ValueError, match=r"^bias: its shape is \[4, 5\]; \[4, 6\]"):
        grouped_gemm(x, weights, order, SMALL, 2, torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"^out: its shape is \[8, 5\]"):
        grouped_gemm(x, weights, order, SMALL, 2, out=torch.zeros(8, 5))
    with pytest.raises(ValueError, match=r"^z: its shape is \[7, 8\]; \[8, any\]"):
        combine(torch.zeros(7, 8), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"^weights: its strides are"):
        combine(torch.zeros(8, 8), torch.zeros(4, 3)[:, :2])
