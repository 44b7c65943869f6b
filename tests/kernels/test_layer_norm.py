"""LayerNorm against float64, element by element."""

import pytest
import torch
from kernel_batches import TOLERANCE, poisoned, worst
from random_rows import normal

from simkit.kernels.layer_norm import layer_norm, layer_norm_reference


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("columns", [1, 64, 100, 768, 4096])
def test_any_width_matches_float64(dtype: torch.dtype, columns: int) -> None:
    x, weight = normal((33, columns), dtype, seed=1), normal((columns,), dtype, seed=2)
    bias = normal((columns,), dtype, seed=3)
    found = layer_norm(x, weight, bias, 1e-5, out=poisoned(x))
    assert worst(found, layer_norm_reference(x, weight, bias, 1e-5)[0]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_residual_is_added_first_and_becomes_the_sum(dtype: torch.dtype) -> None:
    x, residual, weight = (normal(shape, dtype, seed) for shape, seed in (((5, 200), 4), ((5, 200), 5), ((200,), 6)))
    wanted, total = layer_norm_reference(x, weight, None, 1e-5, residual)
    found = layer_norm(x, weight, None, 1e-5, residual, out=poisoned(x))
    assert worst(found, wanted) <= TOLERANCE[dtype]
    assert torch.equal(residual, total.to(dtype)), "one rounding, so the very bits"


def test_torch_agrees() -> None:
    x, weight, bias = (normal(shape, torch.float32, s) for shape, s in (((7, 300), 7), ((300,), 8), ((300,), 9)))
    theirs = torch.nn.functional.layer_norm(x, (300,), weight, bias, 1e-5)
    assert worst(layer_norm(x, weight, bias, 1e-5), theirs.double()) <= 2 * TOLERANCE[torch.float32]


def test_a_large_mean_does_not_cancel() -> None:
    # E[h^2] - E[h]^2 in f32 has no correct digit here
    x = normal((3, 500), torch.float32, seed=10) + 3000.0
    wanted = layer_norm_reference(x, torch.ones(500), None, 1e-5)[0]
    assert worst(layer_norm(x, torch.ones(500), None, 1e-5), wanted) <= 5e-4


def test_nothing_to_do_is_done() -> None:
    assert layer_norm(torch.empty(0, 8), torch.ones(8), None, 1e-6).shape == (0, 8)


def test_bad_arguments_are_named() -> None:
    x, weight = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"^x: its dtype is torch.int32"):
        layer_norm(x.int(), weight, None, 1e-6)
    with pytest.raises(ValueError, match=r"^bias: its shape is \[7\]; \[8\]"):
        layer_norm(x, weight, weight[:7], 1e-6)
    with pytest.raises(ValueError, match=r"^residual: its shape is \[1, 8\]"):
        layer_norm(x, weight, None, 1e-6, x[:1])
    with pytest.raises(ValueError, match=r"^out: its dtype is torch.float64"):
        layer_norm(x, weight, None, 1e-6, out=x.double())
    with pytest.raises(ValueError, match=r"^eps: is nan"):
        layer_norm(x, weight, None, float("nan"))
