"""Activations against float64, element by element."""

import pytest
import torch
from kernel_batches import TOLERANCE, poisoned, worst
from random_rows import normal

from simkit.kernels.gated_activation import (
    ACTIVATIONS,
    GATED_ACTIVATIONS,
    gated_activation,
    gated_activation_reference,
    plain_activation,
    plain_activation_reference,
)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", GATED_ACTIVATIONS)
@pytest.mark.parametrize("width", [1, 65, 2049])
def test_gated_networks_match_float64(dtype: torch.dtype, activation: str, width: int) -> None:
    gate_up = normal((3, 2 * width), dtype, seed=width, scale=5.0)
    found = gated_activation(gate_up, activation, out=poisoned(gate_up[:, :width].contiguous()))
    assert worst(found, gated_activation_reference(gate_up, activation)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_plain_networks_match_float64(dtype: torch.dtype, activation: str) -> None:
    x = normal((4, 100), dtype, seed=1, scale=5.0)
    found = plain_activation(x, activation, out=poisoned(x))
    assert worst(found, plain_activation_reference(x, activation)) <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("activation", "theirs"),
    [
        ("silu", torch.nn.functional.silu),
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("relu", torch.relu),
    ],
)
def test_torch_agrees(activation: str, theirs) -> None:  # type: ignore[no-untyped-def]
    x = torch.linspace(-30, 30, 1001).reshape(1, -1)
    assert worst(plain_activation(x, activation), theirs(x).double()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("activation", GATED_ACTIVATIONS)
def test_huge_gates_stay_finite(activation: str) -> None:
    gate_up = torch.tensor([[1e4, -1e4, 0.0, 1.0, 1.0, 1.0]])
    found = gated_activation(gate_up, activation)
    assert worst(found, gated_activation_reference(gate_up, activation)) <= TOLERANCE[torch.float32]


def test_rows_may_be_apart() -> None:
    wide = normal((4, 300), torch.float32, seed=2)
    found = gated_activation(wide[:, :200], "silu")
    assert worst(found, gated_activation_reference(wide[:, :200], "silu")) <= TOLERANCE[torch.float32]


def test_nothing_to_do_is_done() -> None:
    assert gated_activation(torch.empty(0, 8), "silu").shape == (0, 4)
    assert plain_activation(torch.empty(3, 0), "relu").shape == (3, 0)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^gate_up: rows of 7"):
        gated_activation(torch.ones(2, 7), "silu")
    with pytest.raises(ValueError, match=r"^activation: is 'swish'"):
        gated_activation(torch.ones(2, 8), "swish")
    with pytest.raises(ValueError, match=r"^activation: is 'clamped_swish'"):
        plain_activation(torch.ones(2, 8), "clamped_swish")
    with pytest.raises(ValueError, match=r"^out: its shape is \[2, 8\]; \[2, 4\]"):
        gated_activation(torch.ones(2, 8), "silu", out=torch.ones(2, 8))
    with pytest.raises(ValueError, match=r"^x: its dtype is torch.float64"):
        plain_activation(torch.ones(2, 8).double(), "silu")
