"""The headline follows from the numbers."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from simkit.errors import InputError
from simkit.metrics.load import LoadPoint
from simkit.report.data import ReportData
from simkit.report.html import render_report
from simkit.report.verdict import arrival_rate, find_knee, verdict

MakeData = Callable[..., ReportData]


def point(load: float, ttft_p99_s: float = 0.1, saturated: bool = False) -> LoadPoint:
    return LoadPoint(load, 4 * load, 0.05, ttft_p99_s, 0.01, 0.02, 1.0, 9.0, 1.0, saturated)


def with_summary(data: ReportData, saturated: object, ttft_p99_s: float | None) -> ReportData:
    summary = {
        "requests": {"finished": 400},
        "saturation": {"saturated": saturated},
        "latency_s": {"ttft": {"p99": ttft_p99_s}},
    }
    return replace(data, summary=summary, slo={"ttft_p99_s": 0.5})


@pytest.mark.parametrize(
    ("saturated", "ttft_p99_s", "tone", "met"),
    [
        (False, 0.5, "good", True),
        (False, 0.500001, "bad", False),
        (False, None, "unsure", None),
        (True, None, "bad", False),
        (True, 0.1, "bad", False),
        (None, 0.1, "unsure", True),
    ],
)
def test_tone_follows_regime_and_target(
    data: ReportData, saturated: object, ttft_p99_s: float | None, tone: str, met: bool | None
) -> None:
    judged = verdict(with_summary(data, saturated, ttft_p99_s))
    assert (judged.tone, judged.checks[0].met) == (tone, met)


@pytest.mark.parametrize(
    ("slo", "saturated", "tone", "words"),
    [
        ({"ttft_s": 1.0, "attainment": 0.95}, False, "good", "the target is met"),
        ({"ttft_s": 1.0, "attainment": 0.97}, False, "bad", "1 of 1 target missed: requests within all limits"),
        ({"ttft_s": 1.0, "attainment": 0.95}, True, "bad", "no latency target can be met"),
        ({"ttft_s": 1.0, "goodput_per_s": 3.8}, False, "good", "the target is met"),
        ({"ttft_s": 1.0, "goodput_per_s": 3.9}, False, "bad", "missed: such requests a second"),
        ({"ttft_p99_s": 0.5, "attainment": 0.97}, False, "bad", "1 of 2 targets missed"),
    ],
)
def test_promises_to_single_requests_are_judged(
    data: ReportData, slo: dict[str, float], saturated: bool, tone: str, words: str
) -> None:
    summary = {
        **with_summary(data, saturated, None if saturated else 0.1).summary,
        "goodput": {"requests": 384, "fraction": 0.96, "requests_per_s": 3.84},
    }
    sweep = [point(0.5), replace(point(1.0), goodput_fraction=0.96)]
    asked = replace(data, summary=summary, slo=slo, sweep=sweep)
    judged = verdict(asked)
    assert judged.tone == tone
    assert words in judged.headline
    assert "within all limits" in render_report(asked) or "goodput_per_s" in slo
    within = find_knee(sweep, slo).within_slo
    expected = {0.95: 1.0, 0.97: 0.5}.get(slo.get("attainment", 0.0))
    assert (within.load if within is not None else None) == expected


def test_the_rate_told_is_that_of_all_requests_though_the_curve_replays_the_first_ones(data: ReportData) -> None:
    arrival_ns = data.result.requests.arrival_ns
    expected = (len(arrival_ns) - 1) / ((arrival_ns[-1] - arrival_ns[0]) / 1e9)
    assert arrival_rate(replace(data, sweep=[point(1.0)])) == pytest.approx(expected)


def test_no_targets_is_no_success(data: ReportData) -> None:
    judged = verdict(replace(with_summary(data, False, 0.1), slo={}))
    assert judged.tone == "unsure"
    assert "no latency targets" in judged.headline


def test_no_finished_request_is_said(data: ReportData) -> None:
    judged = verdict(replace(data, summary={"requests": {"finished": 0}, "saturation": {"saturated": False}}))
    assert judged.headline == "No request finished."


def test_knee_lies_between_the_last_stable_and_the_first_growing_load() -> None:
    sweep = [point(1.2), point(0.5), point(1.4, saturated=True), point(1.0), point(1.6)]
    knee = find_knee(sweep, {})
    assert knee.stable is not None
    assert knee.saturated is not None
    assert (knee.stable.load, knee.saturated.load) == (1.2, 1.4)


def test_a_load_counts_within_targets_only_if_all_lower_ones_do() -> None:
    sweep = [point(0.5, 0.1), point(1.0, 0.7), point(1.2, 0.3)]
    within = find_knee(sweep, {"ttft_p99_s": 0.5}).within_slo
    assert within is not None
    assert within.load == 0.5
    assert find_knee([point(0.5, math.nan)], {"ttft_p99_s": 0.5}).within_slo is None


@pytest.mark.parametrize(
    ("sweep", "saturated", "words"),
    [
        ([], False, "how far the knee is away is not known"),
        ([point(0.5), point(1.0)], False, "stable at every load tried, up to 1 × (4.00 req/s)"),
        ([point(1.0), point(1.3, saturated=True)], False, "stable up to 1 × (4.00 req/s), a growing queue from 1.3 ×"),
        ([point(0.8), point(1.0, saturated=True)], True, "Past the knee: the highest stable load tried is 0.8 ×"),
        ([point(0.5, saturated=True)], True, "no load that was tried is stable"),
        ([point(1.0), point(1.3, saturated=True)], True, "At the knee"),
        ([point(0.8), point(0.9, saturated=True)], False, "At the knee"),
    ],
)
def test_side_of_the_knee_is_said(data: ReportData, sweep: list[LoadPoint], saturated: bool, words: str) -> None:
    judged = verdict(replace(with_summary(data, saturated, 0.1), sweep=sweep))
    assert words in " ".join(judged.sentences)


@pytest.mark.parametrize(
    ("slo", "words"),
    [
        ({"ttft_p9x_s": 1.0}, "ttft_p9x_s.*did you mean 'ttft_p9"),
        ({"goodness": 1.0}, "goodness: not a latency target"),
        ({"ttft_p99_s": -1.0}, "ttft_p99_s=-1.0.*positive"),
        ({"ttft_p99_s": math.nan}, "positive"),
        ({"ttft_p99_s": "fast"}, "positive"),
    ],
)
def test_a_target_that_is_none_is_refused(data: ReportData, slo: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(data, slo=slo)
