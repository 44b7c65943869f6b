"""Predictors err as they say they do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from simkit.engine.predictor import Bucketed, Constant, Noisy, Oracle, PredictorSpec

RNG = np.random.default_rng(7)
OUTPUT = np.maximum(1, RNG.lognormal(5.0, 1.0, 20_000)).astype(np.int64)
LENGTHS = st.lists(st.integers(1, 100_000), min_size=1, max_size=200)


def test_oracle_is_the_truth() -> None:
    assert np.array_equal(Oracle().believed(OUTPUT), OUTPUT)


def test_constant_is_one_number_the_mean_if_none_is_given() -> None:
    assert set(Constant().believed(OUTPUT).tolist()) == {round(OUTPUT.mean())}
    assert set(Constant(tokens=7).believed(OUTPUT).tolist()) == {7}


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_noise_is_lognormal_with_the_sigma_stated(sigma: float) -> None:
    long = OUTPUT * 1000  # so that rounding to whole tokens does not matter
    error = np.log(Noisy(sigma=sigma).believed(long) / long)
    assert error.std() == pytest.approx(sigma, rel=0.03)
    # of a lognormal with median 1, half is within exp(+-0.6745 sigma)
    assert np.mean(np.abs(error) < 0.6745 * sigma) == pytest.approx(0.5, abs=0.02)


def test_noise_is_of_its_seed() -> None:
    assert np.array_equal(Noisy(sigma=1.0, seed=3).believed(OUTPUT), Noisy(sigma=1.0, seed=3).believed(OUTPUT))
    assert not np.array_equal(Noisy(sigma=1.0, seed=3).believed(OUTPUT), Noisy(sigma=1.0, seed=4).believed(OUTPUT))


def test_buckets_worked_by_hand() -> None:
    # two buckets of four: medians of 1 2 3 4 and of 10 20 30 40, halves rounded to even
    output = np.array([40, 1, 2, 30, 3, 20, 4, 10])
    assert Bucketed(buckets=2).believed(output).tolist() == [25, 2, 2, 25, 2, 25, 2, 25]


def test_bucket_errors_come_as_often_as_stated() -> None:
    right = Bucketed(buckets=10).believed(OUTPUT)
    assert len(np.unique(right)) == 10
    assert np.bincount(np.searchsorted(np.unique(right), right)).min() > 0.09 * len(OUTPUT)
    guessed = Bucketed(buckets=10, accuracy=0.8).believed(OUTPUT)
    assert np.mean(guessed == right) == pytest.approx(0.8, abs=0.01)
    assert set(guessed.tolist()) == set(right.tolist())


@given(LENGTHS, st.integers(1, 50))
def test_buckets_keep_the_order_of_lengths(lengths: list[int], buckets: int) -> None:
    output = np.sort(np.array(lengths, dtype=np.int64))
    believed = Bucketed(buckets=buckets).believed(output)
    assert np.all(np.diff(believed) >= 0)
    assert len(np.unique(believed)) <= buckets
    assert believed.min() >= output.min()
    assert believed.max() <= output.max()


@given(LENGTHS, st.floats(0.01, 10.0))
def test_no_answer_is_believed_shorter_than_a_token(lengths: list[int], sigma: float) -> None:
    believed = Noisy(sigma=sigma).believed(np.array(lengths, dtype=np.int64))
    assert np.all((believed >= 1) & (believed < 2**31))


def test_nothing_is_believed_of_nobody() -> None:
    nobody = np.zeros(0, dtype=np.int64)
    for predictor in (Constant(), Oracle(), Noisy(sigma=1.0), Bucketed()):
        assert len(predictor.believed(nobody)) == 0


@pytest.mark.parametrize(
    "given", [{"kind": "noisy"}, {"kind": "oracle", "sigma": 1.0}, {"kind": "noisy", "sigma": float("nan")}, {}]
)
def test_a_parameter_of_another_kind_is_an_error(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(PredictorSpec).validate_python(given)
