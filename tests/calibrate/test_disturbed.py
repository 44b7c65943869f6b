"""What a busy host adds is told from what a kernel does."""

import numpy as np
import pandas as pd
import pytest

from simkit.calibrate.disturbed import undisturbed
from simkit.calibrate.gemm_model import fit_gemm
from simkit.calibrate.provenance import Tag

from .made_up_profile import gemm_ns, table


def test_a_point_that_stands_alone_is_put_back() -> None:
    ratio = np.zeros((40, 9))
    ratio[7, 4] = 0.9
    found, which = undisturbed(ratio)
    assert np.argwhere(which).tolist() == [[7, 4]]
    assert (found == 0.0).all()


def test_a_step_that_many_rows_have_is_the_kernels() -> None:
    ratio = np.zeros((40, 9))
    ratio[:10, 4] = 0.9
    found, which = undisturbed(ratio)
    assert not which.any()
    np.testing.assert_array_equal(found, ratio)


def test_a_step_that_goes_on_is_the_kernels() -> None:
    ratio = np.zeros((40, 9))
    ratio[3, 4:] = 0.9
    assert not undisturbed(ratio)[1].any()


def test_holes_stay_and_few_rows_tell_nothing() -> None:
    ratio = np.zeros((40, 9))
    ratio[0], ratio[1, 3] = np.nan, np.nan
    found, which = undisturbed(ratio)
    assert not which.any()
    assert np.isnan(found[0]).all()
    few = np.zeros((5, 9))
    few[2, 4] = 0.9
    assert not undisturbed(few)[1].any()


WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def block_table() -> pd.DataFrame:
    """Products with block scales; those of 32 columns, which no block fits, take a kernel three times as slow."""
    rows = []
    for n in (32, *WIDTHS):
        for k in WIDTHS[1:]:
            slow = 3.0 if n == 32 else 1.0
            rows.append(table("gemm", slow * gemm_ns(TOKENS, n, k), tokens=TOKENS, n=n, k=k, dtype="fp8_block"))
    return pd.concat(rows, ignore_index=True)


def test_shapes_that_no_block_fits_do_not_tell_of_those_that_it_does() -> None:
    whole = block_table()
    model = fit_gemm(whole[~((whole["n"] == 64) & (whole["k"] == 512))], 132)
    found = model.ns(np.array(TOKENS, float), 64, 512, "fp8_block")
    np.testing.assert_allclose(found.ns, gemm_ns(TOKENS, 64, 512), rtol=0.05)


def test_a_disturbed_measurement_is_not_given_back_as_measured() -> None:
    whole = block_table()
    bad = (whole["n"] == 1024) & (whole["k"] == 1024) & (whole["tokens"] == 16)
    whole.loc[bad, "median_ns"] *= 4.0
    found = fit_gemm(whole, 132).ns(np.array([8.0, 16.0]), 1024, 1024, "fp8_block")
    assert found.ns[1] == pytest.approx(float(gemm_ns(16, 1024, 1024)), rel=0.05)
    assert found.tag.tolist() == [Tag.MEASURED, Tag.INTERPOLATED]
