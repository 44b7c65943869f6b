"""Products with int8 weights: against float64 of the same int8, and what int8 itself costs."""

import pytest
import torch
from kernel_batches import TOLERANCE, worst
from random_rows import normal

from simkit.kernels.int8_gemm import Int8Weights, int8_gemm, int8_gemm_reference, quantize_int8


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("tokens", "n_in", "n_out"), [(1, 64, 64), (17, 100, 70), (33, 300, 5)])
def test_any_size_matches_float64(dtype: torch.dtype, tokens: int, n_in: int, n_out: int) -> None:
    x = normal((tokens, n_in), dtype, seed=1)
    weights = quantize_int8(normal((n_out, n_in), torch.float32, seed=2, scale=n_in**-0.5))
    found = int8_gemm(x, weights, torch.full((tokens, n_out), float("nan"), dtype=dtype))
    assert worst(found, int8_gemm_reference(x, weights)) <= TOLERANCE[dtype]


def test_many_rows_take_the_large_tiles() -> None:
    x = normal((260, 64), torch.float16, seed=3)
    weights = quantize_int8(normal((130, 64), torch.float32, seed=4, scale=0.125))
    assert worst(int8_gemm(x, weights), int8_gemm_reference(x, weights)) <= TOLERANCE[torch.float16]


def test_rounding_is_within_half_a_step() -> None:
    weights = normal((9, 500), torch.float32, seed=5)
    weights[3] = 0.0
    q, scale = quantize_int8(weights)
    error = (q.double() * scale.double()[:, None] - weights.double()).abs()
    assert bool((error <= 0.5001 * scale.double()[:, None]).all())
    assert torch.equal(q.abs().amax(dim=1).int(), torch.tensor([127] * 3 + [0] + [127] * 5).int())


def test_nothing_to_do_is_done() -> None:
    assert int8_gemm(torch.zeros(0, 8), quantize_int8(torch.ones(4, 8))).shape == (0, 4)


def test_bad_arguments_are_named() -> None:
    x, weights = torch.zeros(3, 8), quantize_int8(torch.ones(4, 8))
    with pytest.raises(ValueError, match=r"^weights.q: its shape is \[4, 8\]; \[any, 7\]"):
        int8_gemm(torch.zeros(3, 7), weights)
    with pytest.raises(ValueError, match=r"^weights.q: its dtype is torch.float32"):
        int8_gemm(x, Int8Weights(weights.q.float(), weights.scale))
    with pytest.raises(ValueError, match=r"^weights.scale: its shape is \[3\]; \[4\]"):
        int8_gemm(x, Int8Weights(weights.q, weights.scale[:3]))
    with pytest.raises(ValueError, match=r"^out: its dtype"):
        int8_gemm(x, weights, torch.zeros(3, 4, dtype=torch.float16))
