"""RMSNorm against float64, element by element."""

import pytest
import torch
from kernel_batches import TOLERANCE, poisoned, worst
from random_rows import normal

from simkit.kernels.rms_norm import rms_norm, rms_norm_reference


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("columns", [1, 64, 100, 576, 4096])
@pytest.mark.parametrize("tokens", [1, 33])
def test_any_width_matches_float64(dtype: torch.dtype, columns: int, tokens: int) -> None:
    x, weight = normal((tokens, columns), dtype, seed=1), normal((columns,), dtype, seed=2)
    found = rms_norm(x, weight, 1e-6, out=poisoned(x))
    assert worst(found, rms_norm_reference(x, weight, 1e-6)[0]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_residual_is_added_first_and_becomes_the_sum(dtype: torch.dtype) -> None:
    x, residual, weight = (normal(shape, dtype, seed) for shape, seed in (((5, 200), 3), ((5, 200), 4), ((200,), 5)))
    wanted, total = rms_norm_reference(x, weight, 1e-5, residual)
    found = rms_norm(x, weight, 1e-5, residual, out=poisoned(x))
    assert worst(found, wanted) <= TOLERANCE[dtype]
    assert torch.equal(residual, total.to(dtype)), "one rounding, so the very bits"


def test_gemma_adds_one_to_its_weight() -> None:
    x, weight = normal((4, 96), torch.float32, seed=6), normal((96,), torch.float32, seed=7)
    plain = rms_norm(x, weight + 1, 1e-6)
    assert worst(rms_norm(x, weight, 1e-6, weight_offset=1.0), plain.double()) <= TOLERANCE[torch.float32]


def test_torch_agrees() -> None:
    x, weight = normal((7, 300), torch.float32, seed=8), normal((300,), torch.float32, seed=9)
    theirs = torch.nn.functional.rms_norm(x, (300,), weight, 1e-5)
    assert worst(rms_norm(x, weight, 1e-5), theirs.double()) <= TOLERANCE[torch.float32]


def test_heads_within_a_wider_row_are_normed_in_place() -> None:
    qkv = normal((3, 6, 64), torch.float16, seed=10)
    before, weight = qkv.clone(), normal((64,), torch.float16, seed=11)
    q = qkv[:, 1:5]
    assert rms_norm(q, weight, 1e-6, out=q) is q
    assert worst(q, rms_norm_reference(before[:, 1:5], weight, 1e-6)[0]) <= TOLERANCE[torch.float16]
    assert torch.equal(qkv[:, [0, 5]], before[:, [0, 5]]), "the heads beside are left alone"


@pytest.mark.parametrize("size", [1e-12, 1e12], ids=["tiny", "huge"])
def test_the_scale_of_a_row_does_not_show(size: float) -> None:
    x, weight = normal((2, 128), torch.float32, seed=12), torch.ones(128)
    found = rms_norm(x * size, weight, 0.0)
    assert worst(found, rms_norm_reference(x, weight, 0.0)[0]) <= 10 * TOLERANCE[torch.float32]


def test_rows_do_not_mix() -> None:
    x, weight = normal((9, 64), torch.float32, seed=13), torch.ones(64)
    before = rms_norm(x, weight, 1e-6)
    x[4] = float("nan")
    after = rms_norm(x, weight, 1e-6)
    assert torch.equal(after[[0, 3, 5, 8]], before[[0, 3, 5, 8]])


def test_nothing_to_do_is_done() -> None:
    assert rms_norm(torch.empty(0, 8), torch.ones(8), 1e-6).shape == (0, 8)


def test_bad_arguments_are_named() -> None:
    x, weight = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"^x: its shape is \[8\]"):
        rms_norm(x[0], weight, 1e-6)
    with pytest.raises(ValueError, match=r"^x: its last stride"):
        rms_norm(torch.ones(8, 2).T, weight, 1e-6)
    with pytest.raises(ValueError, match=r"^x: rows of 40000"):
        rms_norm(torch.ones(1, 40000), torch.ones(40000), 1e-6)
    with pytest.raises(ValueError, match=r"^weight: its shape is \[7\]; \[8\]"):
        rms_norm(x, weight[:7], 1e-6)
    with pytest.raises(ValueError, match=r"^residual: its dtype is torch.float16"):
        rms_norm(x, weight, 1e-6, x.half())
    with pytest.raises(ValueError, match=r"^out: its shape is \[1, 8\]"):
        rms_norm(x, weight, 1e-6, out=x[:1])
    with pytest.raises(ValueError, match=r"^eps: is -1"):
        rms_norm(x, weight, -1.0)
    with pytest.raises(ValueError, match=r"^weight: is on meta"):
        rms_norm(x, weight.to("meta"), 1e-6)
