"""Errors and what they come to, worked by hand."""

import math

import numpy as np
import pytest

from simkit.fidelity.comparison import Compared, ComparedRun, NotRun, Validation, as_json, overall
from simkit.fidelity.figures import ClientLatencies, figures
from simkit.fidelity.intervals import Interval, Queued, Residuals, conformal_shares, interval, step_factors
from simkit.fidelity.measured_runs import MeasuredRun
from simkit.fidelity.page import render
from simkit.fidelity.validate import excluded_for, measured_in_flight
from tests.fidelity.conftest import run


def compared(predicted: float, measured: float, excluded: str | None = None) -> ComparedRun:
    whole = Compared(
        "whole", {"itl_mean": predicted}, {"itl_mean": measured}, {"itl_mean": Interval(9.0, 11.0)}, None, excluded
    )
    return ComparedRun("x", "m", "H100", 1, "calibrated", "note", (whole,))


def test_errors_are_relative_to_what_was_measured() -> None:
    runs = [compared(11.0, 10.0), compared(8.0, 10.0), compared(10.5, 10.0)]
    summary = overall(runs)["itl_mean"]
    assert summary.n == 3
    assert summary.median_abs_pct == pytest.approx(10.0)
    assert summary.mape_pct == pytest.approx((10 + 20 + 5) / 3)
    assert summary.median_signed_pct == pytest.approx(5.0)
    assert summary.worst_pct == pytest.approx(-20.0)
    assert summary.inside_interval == 1.0


def test_an_excluded_run_is_shown_and_not_counted() -> None:
    runs = (compared(11.0, 10.0), compared(99.0, 10.0, excluded="more was offered than it takes"))
    assert overall(runs)["itl_mean"].n == 1
    tree = as_json(Validation(runs, ()))
    assert tree["runs"][1]["stages"]["whole"]["excluded"].startswith("more")  # type: ignore[index]


def test_json_has_the_promised_shape() -> None:
    tree = as_json(Validation((compared(11.0, 10.0),), (NotRun("b", "model 'b' is not known"),)))
    assert set(tree) == {"overall", "runs", "not_run"}
    itl = tree["overall"]["itl_mean"]  # type: ignore[index]
    assert {"median_abs_pct", "mape_pct", "median_signed_pct", "n"} <= set(itl)
    assert tree["not_run"] == [{"id": "b", "reason": "model 'b' is not known"}]


def test_figures_are_means_and_percentiles_in_ms() -> None:
    ttft = np.arange(1, 102) / 1000.0
    latencies = ClientLatencies(ttft, np.full(101, 0.01), ttft + 1.0)
    found = figures(latencies)
    assert found["ttft_mean"] == pytest.approx(51.0)
    assert found["ttft_p50"] == pytest.approx(51.0)
    assert found["ttft_p90"] == pytest.approx(91.0)
    assert found["ttft_p99"] == pytest.approx(100.0)
    assert found["itl_mean"] == pytest.approx(10.0)
    assert found["e2e_mean"] == pytest.approx(1051.0)
    assert figures(latencies, np.zeros(101, dtype=bool)) == {}


def test_littles_law_names_a_stage_that_offers_too_much() -> None:
    measured = {"whole": {"e2e_mean_ms": 1.0}, "stage0": {"e2e_mean_ms": 5000.0}, "stage1": {"e2e_mean_ms": 20000.0}}
    read = MeasuredRun.model_validate(run(measured=measured))
    assert measured_in_flight(read, "stage0") == pytest.approx(20.0)  # 4 a second for 5 s
    assert measured_in_flight(read, "stage1") == pytest.approx(160.0)
    assert excluded_for(read, "stage0") is None
    reason = excluded_for(read, "stage1")
    assert reason is not None
    assert "160" in reason
    assert "128" in reason


@pytest.mark.parametrize("count", [19, 27, 100])
def test_conformal_interval_holds_its_share_of_new_values(count: int) -> None:
    """Split conformal prediction: over exchangeable draws the coverage is near the level, neither below nor above."""
    rng = np.random.default_rng(count)
    held = []
    for _ in range(4000):
        values = rng.standard_t(4, count + 1)
        low, high = (np.quantile(values[:-1], share) for share in conformal_shares(count, 0.9))
        held.append(low <= values[-1] <= high)
    assert 0.86 <= np.mean(held) <= 0.94


@pytest.mark.parametrize(("count", "told"), [(18, False), (19, True)])
def test_no_interval_is_told_that_cannot_hold_its_share(count: int, told: bool) -> None:
    """Between the least and the largest of n errors lie (n - 1) / (n + 1) of new ones."""
    assert ((count - 1) / (count + 1) >= 0.9) is told
    residuals = Residuals(("other",) * count, {"itl_mean": np.linspace(-0.1, 0.1, count)})
    assert (interval("itl_mean", 10.0, residuals) is not None) is told
    assert (step_factors(residuals) != (1.0, 1.0)) is told


def test_a_runs_own_model_does_not_judge_it() -> None:
    errors = np.concatenate([np.full(5, 3.0), np.linspace(-0.1, 0.1, 20)])
    residuals = Residuals(("own",) * 5 + ("other",) * 20, {"itl_mean": errors})
    bounds = interval("itl_mean", 10.0, residuals, model="own")
    assert bounds is not None
    assert 10 * math.exp(-0.11) < bounds.low < 10 < bounds.high < 10 * math.exp(0.11)
    wide = interval("itl_mean", 10.0, residuals, seeds=(10.0, 12.0, 8.0), model="own")
    assert wide is not None
    assert wide.low < bounds.low
    assert wide.high > bounds.high
    assert interval("itl_p50", 10.0, residuals) is None


def test_a_queue_widens_the_interval_by_what_it_adds_to_a_step() -> None:
    errors = np.linspace(-0.1, 0.1, 21)
    residuals = Residuals(("other",) * 21, {"itl_mean": errors, "ttft_p99": errors})
    factors = step_factors(residuals)
    # 21 even errors of +-0.1: conformal quantiles are 0.0048 and 0.9952, of a range of 0.2
    assert factors == pytest.approx((math.exp(-0.1 + 0.001), math.exp(0.1 - 0.001)), rel=1e-3)
    plain = interval("ttft_p99", 100.0, residuals)
    assert plain is not None
    # far from the limits a latency moves as the step does, and the residuals hold that already
    as_steps = Queued(100.0 * factors.faster, 100.0 * factors.slower)
    assert interval("ttft_p99", 100.0, residuals, queued=as_steps) == pytest.approx(plain)
    # near them the tail is a fifth, or five times as long
    near = interval("ttft_p99", 100.0, residuals, queued=Queued(20.0, 500.0))
    assert near is not None
    assert near.low < 25.0
    assert near.high > 400.0
    # a queue that only grows says nothing of the other side
    grows = interval("ttft_p99", 100.0, residuals, queued=Queued(as_steps.faster, 500.0))
    assert grows is not None
    assert grows.low == pytest.approx(plain.low)
    assert grows.high == pytest.approx(near.high)


def test_the_page_escapes_what_comes_from_outside() -> None:
    bad = ComparedRun("<script>x</script>", "m", "<b>", 1, "calibrated", "n", compared(11.0, 10.0).stages)
    text = render(Validation((bad,), (NotRun("<i>", "<u>"),)))
    assert "<script>x" not in text
    assert "<u>" not in text
    assert "&lt;script&gt;x" in text
    assert text == render(Validation((bad,), (NotRun("<i>", "<u>"),)))
