"""Non-negative least squares against scipy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from simkit.calibrate.nonnegative import nonnegative_least_squares


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(6, 40), st.booleans())
def test_is_as_good_as_scipys(seed: int, columns: int, rows: int, correlated: bool) -> None:
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, columns))
    if correlated:  # columns that nearly point the same way, as step features do
        features = np.abs(features) + 3.0
    features *= 10.0 ** random.integers(-6, 7, columns)
    target = random.normal(size=rows) + features @ (random.normal(size=columns) / np.abs(features).max(axis=0))
    found = nonnegative_least_squares(features, target)
    # scipy is given columns of length 1, for its own tolerance is absolute
    length = np.linalg.norm(features, axis=0)
    wanted, residual = nnls(features / length, target)
    assert np.all(found >= 0.0)
    assert np.linalg.norm(features @ found - target) == pytest.approx(residual, rel=1e-7, abs=1e-9)
    np.testing.assert_allclose(found * length, wanted, rtol=1e-4, atol=1e-6)


def test_a_column_of_zeros_gets_nothing() -> None:
    features = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    np.testing.assert_allclose(nonnegative_least_squares(features, np.array([2.0, 4.0, 6.0])), [2.0, 0.0])


def test_equal_columns_share_one_solution() -> None:
    column = np.arange(1.0, 9.0)
    found = nonnegative_least_squares(np.column_stack([column, column]), 5.0 * column)
    assert np.all(found >= 0.0)
    assert found.sum() == pytest.approx(5.0)


def test_what_is_opposed_gets_nothing() -> None:
    features = np.array([[1.0, -1.0], [1.0, -2.0]])
    np.testing.assert_array_equal(nonnegative_least_squares(-np.abs(features), np.array([1.0, 2.0])), [0.0, 0.0])
