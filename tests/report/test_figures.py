"""Curves are thinned without changing what they say."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from simkit.metrics.result import RunResult
from simkit.report.data import ReportData
from simkit.report.figures.axes import MAX_POINTS, thin_quantiles, thin_series
from simkit.report.figures.cdf import gap_cdf, latency_cdf
from simkit.report.figures.fleet_size import fleet_size
from simkit.report.figures.load import load_figures
from simkit.report.figures.series import series_figures
from simkit.report.figures.svg import inline

values = hnp.arrays(np.float64, st.integers(0, 3000), elements=st.floats(0, 1e6))


@given(values)
def test_thinned_curve_is_points_of_the_true_distribution(sample: np.ndarray) -> None:
    x, share = thin_quantiles(sample)
    assert len(x) <= MAX_POINTS
    ordered = np.sort(sample)
    for value, height in zip(x[:: max(1, len(x) // 20)], share[:: max(1, len(x) // 20)], strict=True):
        assert ordered[round(height * len(ordered)) - 1] == value
    if len(sample):
        assert (x[0], x[-1], share[-1]) == (sample.min(), sample.max(), 1.0)


def test_the_tail_is_kept_dense() -> None:
    _, share = thin_quantiles(np.random.default_rng(1).exponential(size=1_000_000))
    assert (share > 0.999).sum() > 50


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 3000), elements=st.floats(0, 1e6)))
def test_thinned_series_keeps_mean_and_extremes(sample: np.ndarray) -> None:
    mean, low, high = thin_series(sample)
    assert len(mean) == len(low) == len(high) <= MAX_POINTS
    size = -(-len(sample) // len(mean))
    weights = np.minimum(size, len(sample) - size * np.arange(len(mean)))
    assert (mean * weights).sum() / len(sample) == pytest.approx(sample.mean(), rel=1e-9, abs=1e-9)
    assert (low.min(), high.max()) == (sample.min(), sample.max())


def test_a_fleets_size_is_drawn_as_steps_up_to_its_end() -> None:
    svg = fleet_size([0.0, 10.0, 40.0], [2, 3, 1], [2, 4, 1], 80.0)
    assert "Replicas over 80.0 s: 1 to 3 serving, at most 4 paid for" in svg
    line = curve(svg, "var(--part-decode)")
    # from 0, to 10, 40 and 80 of 80 s: corners at 1/8, 1/2 and 1 of the width, at 2, 3 and 1 replicas
    width = line[-1, 0] - line[0, 0]
    assert sorted(set(((line[:, 0] - line[0, 0]) / width).round(3))) == [0.0, 0.125, 0.5, 1.0]
    heights = line[:, 1]
    assert (heights.max() - heights[0]) == pytest.approx(heights[0] - heights[-1])


def curve(svg: str, colour: str) -> np.ndarray:
    """The points of the longest line drawn in a colour, y upward."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*stroke: ' + re.escape(colour), svg)
    points = [np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), dtype=np.float64) for path in paths]
    longest = max(points, key=len)
    return longest * [1, -1]


def test_a_distribution_is_drawn_rising_on_a_logarithmic_axis() -> None:
    # log-uniform latencies are a straight line over a logarithmic axis
    sample = np.geomspace(0.01, 10, 2000)
    svg = latency_cdf("ttft", sample, [], steady=True)
    assert svg is not None
    line = curve(svg, "var(--part-prefill)")
    assert np.corrcoef(line[:, 0], line[:, 1])[0, 1] > 0.9999
    assert f"p99 {0.01 * 1000**0.99:.2f} s" in svg


def test_no_percentile_is_marked_under_a_growing_queue() -> None:
    steady = latency_cdf("e2e", np.geomspace(1, 9, 50), [], steady=True)
    growing = latency_cdf("e2e", np.geomspace(1, 9, 50), [], steady=False)
    assert steady is not None
    assert growing is not None
    assert ("p50" in steady, "p50" in growing) == (True, False)


def test_nothing_is_drawn_of_nothing(make_result: object, result: RunResult) -> None:
    assert latency_cdf("tpot", np.array([np.nan]), [], steady=True) is None
    empty = make_result(n=0)  # type: ignore[operator]
    assert gap_cdf(empty.itl, [], steady=True) is None
    assert series_figures(empty.series) == []
    assert len(series_figures(result.series)) == 5


def test_saturated_loads_are_no_part_of_the_curve(data: ReportData) -> None:
    ttft = load_figures(data.sweep, data.slo)[0]
    stable = sum(not point.saturated for point in data.sweep)
    assert len(curve(ttft, "var(--part-prefill)")) == stable
    assert "queue grows" in ttft
    assert "p99 target 2.00 s" in ttft
    assert load_figures(data.sweep[:1], {}) == []


def test_svgs_in_one_page_share_no_id() -> None:
    shapes = '<path id="a" d="M 0.123456 1"/><use xlink:href="#a" clip-path="url(#a)"/>'
    drawing = f'<?xml version="1.0"?>\n<svg width="1pt" viewBox="0 0 1 1">{shapes}</svg>'
    one, two = inline(drawing, "one", "first <one>"), inline(drawing, "two", "second")
    assert 'id="one-a"' in one
    assert 'href="#one-a" clip-path="url(#one-a)"' in one
    assert 'aria-label="first &lt;one&gt;"' in one
    assert 'd="M 0.12 1"' in one
    assert not set(re.findall(r'id="([^"]*)"', one)) & set(re.findall(r'id="([^"]*)"', two))
