"""Sampling: the sets that filters keep, the probabilities, and the draws, against float64."""

import math

import pytest
import torch
from random_rows import normal

from simkit.kernels.random_numbers import SAMPLING, exponential_reference, random_bits_reference
from simkit.kernels.sampling import (
    SamplingParameters,
    sample,
    sample_reference,
    sampling_probabilities,
    sampling_probabilities_reference,
)


def parameters(
    rows: int,
    temperature: float | list[float] = 1.0,
    top_k: int | list[int] = 0,
    top_p: float | list[float] = 1.0,
    min_p: float | list[float] = 0.0,
    seed: int = 0,
) -> SamplingParameters:
    def column(values: float | list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values if isinstance(values, list) else [values] * rows, dtype=dtype)

    return SamplingParameters(
        temperature=column(temperature, torch.float32),
        top_k=column(top_k, torch.int32),
        top_p=column(top_p, torch.float32),
        min_p=column(min_p, torch.float32),
        seed=torch.arange(seed, seed + rows, dtype=torch.int64),
        step=torch.zeros(rows, dtype=torch.int32),
    )


def between_tokens(logits: torch.Tensor, temperature: float, rank: int) -> float:
    """A top_p half a token's share below the mass of the `rank` likeliest, which no rounding can mistake."""
    chances = torch.softmax(logits.double() / temperature, dim=-1).sort(descending=True).values
    return float(chances[:rank].sum() - chances[rank - 1] / 2)


def kept_by_hand(logits: torch.Tensor, count: int) -> set[int]:
    return set(logits.sort(descending=True).indices[:count].tolist())


def kept(logits: torch.Tensor, chosen: SamplingParameters) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in sampling_probabilities(logits, chosen)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("vocab", [1, 7, 2048, 5001])
def test_plain_temperature_is_the_softmax(dtype: torch.dtype, vocab: int) -> None:
    logits = normal((3, vocab), dtype, seed=1, scale=4.0)
    found = sampling_probabilities(logits, parameters(3, [0.3, 1.0, 2.5]))
    wanted = torch.softmax(logits.double() / torch.tensor([[0.3], [1.0], [2.5]], dtype=torch.float32), dim=1)
    assert float((found - wanted).abs().max()) <= 5e-7
    assert torch.allclose(found.sum(1), torch.ones(3), atol=2e-6)


@pytest.mark.parametrize("top_k", [1, 2, 50, 999, 1000])
def test_top_k_keeps_the_k_likeliest(top_k: int) -> None:
    logits = normal((2, 1000), torch.float32, seed=2)
    assert kept(logits, parameters(2, 0.7, top_k=top_k)) == [kept_by_hand(row, top_k) for row in logits]


@pytest.mark.parametrize("rank", [1, 2, 30, 700])
def test_top_p_keeps_the_fewest_that_reach_it(rank: int) -> None:
    logits = normal((1, 1000), torch.float32, seed=3, scale=2.0)
    top_p = between_tokens(logits[0], 1.3, rank)
    assert kept(logits, parameters(1, 1.3, top_p=top_p)) == [kept_by_hand(logits[0], rank)]


def test_top_p_of_exact_probabilities() -> None:
    # 1/2, 1/4, 1/8, 1/16, 1/16: every sum of them is exact, and so is reaching it
    logits = torch.tensor([[-3.0, 0.0, -1.0, -2.0, -3.0]]) * math.log(2)
    for top_p, wanted in [(0.0, {1}), (0.5, {1}), (0.51, {1, 2}), (0.75, {1, 2}), (0.8, {1, 2, 3})]:
        assert kept(logits, parameters(1, 1.0, top_p=top_p)) == [wanted], top_p
    assert kept(logits, parameters(1, 1.0, top_p=0.9)) == [{0, 1, 2, 3, 4}], "equals of the last are kept too"


def test_equals_of_the_kth_are_kept_too() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    assert kept(logits, parameters(1, 1.0, top_k=2)) == [{1, 2, 3, 4}]


@pytest.mark.parametrize("min_p", [1.0, 0.5, 0.1, 1e-3])
def test_min_p_keeps_what_is_likely_beside_the_best(min_p: float) -> None:
    logits = normal((1, 500), torch.float32, seed=4, scale=2.0)
    chances = torch.softmax(logits[0].double() / 0.8, dim=0)
    wanted = set((chances >= min_p * chances.max()).nonzero().flatten().tolist())
    assert kept(logits, parameters(1, 0.8, min_p=min_p)) == [wanted]


def test_top_p_is_of_what_min_p_and_top_k_leave() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # of 4/9, 3/9, 2/9 two reach 0.7; of all four, three would be needed
    assert kept(logits, parameters(1, 1.0, top_k=3, top_p=0.7)) == [{0, 1}]
    assert kept(logits, parameters(1, 1.0, min_p=0.4, top_p=0.7)) == [{0, 1}]
    assert kept(logits, parameters(1, 1.0, top_p=0.75)) == [{0, 1, 2}]


def test_all_filters_at_once_match_float64_row_by_row() -> None:
    logits = normal((8, 3000), torch.float32, seed=5, scale=3.0)
    chosen = parameters(
        8,
        [0.5, 1.0, 2.0, 0.0, 1.0, 1.0, 0.7, 1e-6],
        [0, 40, 500, 5, 1, 3000, 100, 0],
        [0.9, 1.0, 0.53, 0.9, 0.5, 0.99, 0.0, 1.0],
        [0.0, 0.05, 0.01, 0.0, 0.0, 0.0, 0.2, 0.0],
    )
    found, wanted = sampling_probabilities(logits, chosen), sampling_probabilities_reference(logits, chosen)
    assert torch.equal(found > 0, wanted > 0)
    assert float((found - wanted).abs().max()) <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_greedy_takes_the_lowest_of_the_likeliest(dtype: torch.dtype) -> None:
    logits = normal((4, 2500), dtype, seed=6)
    logits[1, [2400, 17, 1100]] = 9.0
    logits[2, 0] = logits[3, 2499] = 9.0
    found = sample(logits, parameters(4, 0.0))
    assert found.tolist() == [int(logits[0].float().argmax()), 17, 0, 2499]


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((12, 70), -math.inf)
    logits[:, 69] = -3.0
    assert sample(logits, parameters(12)).tolist() == [69] * 12
    assert sample(logits, parameters(12, top_k=5, top_p=0.5)).tolist() == [69] * 12
    assert float(sampling_probabilities(logits, parameters(12))[:, 69].min()) == 1.0


@pytest.mark.parametrize("size", [1e4, 3e38])
def test_huge_logits_are_no_trouble(size: float) -> None:
    logits = torch.tensor([[-size, 0.0, size, size]])
    assert sampling_probabilities(logits, parameters(1)).tolist() == [[0.0, 0.0, 0.5, 0.5]]


def test_draws_are_those_of_float64() -> None:
    logits = normal((40, 300), torch.float32, seed=7, scale=2.0)
    chosen = parameters(40, [0.8] * 20 + [1.5] * 20, ([0] * 10 + [20] * 10) * 2, 0.95, seed=100)
    assert torch.equal(sample(logits, chosen), sample_reference(logits, chosen))


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    row = normal((1, 400), torch.float32, seed=8)
    alone = parameters(1, seed=5)
    among = parameters(6, seed=0)  # row 5 has seed 5
    rows = normal((6, 400), torch.float32, seed=9)
    rows[5] = row
    assert int(sample(row, alone)) == int(sample(rows, among)[5])
    steps = {int(sample(row, alone._replace(step=torch.tensor([i], dtype=torch.int32)))) for i in range(20)}
    assert len(steps) > 10, "each draw of a request is another"


def test_drawn_tokens_have_the_probabilities() -> None:
    chances = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    rows = 4000
    logits, chosen = chances.log().repeat(rows, 1), parameters(rows, seed=1000)
    drawn = sample_reference(logits, chosen)
    few = SamplingParameters(*(column[:60] for column in chosen))
    assert torch.equal(sample(logits[:60], few), drawn[:60])
    seen = torch.bincount(drawn, minlength=6)
    chi_squared = float(((seen - rows * chances) ** 2 / (rows * chances)).sum())
    assert chi_squared < 20.5, f"{seen.tolist()}: chance 1 in 1,000 at five degrees of freedom"


def test_small_probabilities_are_drawn_as_often_as_they_should() -> None:
    # the exponential race in float64: 2^20 draws of 1024 tokens would take 1e-6 apart from 0
    noise = exponential_reference(3, torch.arange(1 << 20), 0, SAMPLING)
    assert abs(float(noise.mean()) - 1) < 5e-3
    assert abs(float(noise.var()) - 1) < 1e-2
    assert 0 < float(noise.min()) < 1e-5
    below = float((noise < 1e-4).double().mean())
    assert abs(below - 1e-4) < 4e-5


def test_philox_gives_the_published_bits() -> None:
    # Random123 kat_vectors, philox4x32 10: counter 0, key 0
    assert int(random_bits_reference(0, torch.tensor([0]), 0, 0)) == 0x6627E8D5


def test_nothing_to_do_is_done() -> None:
    assert sample(torch.empty(0, 9), parameters(0)).shape == (0,)


def test_bad_arguments_are_named() -> None:
    logits, good = torch.zeros(2, 9), parameters(2)
    with pytest.raises(ValueError, match=r"^logits: its dtype is torch.float64"):
        sample(logits.double(), good)
    with pytest.raises(ValueError, match=r"^logits: a vocabulary of 0"):
        sample(torch.zeros(2, 0), good)
    with pytest.raises(ValueError, match=r"^parameters.top_k: its dtype is torch.int64"):
        sample(logits, good._replace(top_k=good.top_k.long()))
    with pytest.raises(ValueError, match=r"^parameters.seed: its shape is \[1\]; \[2\]"):
        sample(logits, good._replace(seed=good.seed[:1]))
    with pytest.raises(ValueError, match=r"^out: its dtype is torch.int32"):
        sample(logits, good, out=torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"^out: its shape is \[2, 8\]"):
        sampling_probabilities(logits, good, out=torch.zeros(2, 8))
