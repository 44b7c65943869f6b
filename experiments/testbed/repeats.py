"""Repeats, each of several shifts, beside their predictions: percentiles over all requests of a repeat."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simkit.metrics.comparison import StepTimes
from simkit.metrics.latency import finished_latencies
from simkit.metrics.result import Histogram, RunResult

AIMS = {"p50": 0.10, "p90": 0.20}
QUANTILES = {"p50": 0.5, "p90": 0.9}
METRICS = ("e2e", "ttft", "itl")

Latencies = dict[tuple[str, str], float]  # (metric, quantile) -> s


class Repeat(NamedTuple):
    """One repeat: its shifts as measured, and draws of each as predicted."""

    measured: tuple[RunResult, ...]  # [shifts]
    predicted: tuple[tuple[RunResult, ...], ...]  # [draws][shifts]


def latencies_s(shifts: Sequence[RunResult]) -> Latencies:
    """Quantiles over all requests of the shifts."""
    each = [finished_latencies(shift.requests) for shift in shifts]
    gaps = pooled([shift.itl for shift in shifts])
    found: Latencies = {}
    for name, q in QUANTILES.items():
        found["e2e", name] = float(np.quantile(np.concatenate([one.e2e_s for one in each]), q))
        found["ttft", name] = float(np.quantile(np.concatenate([one.ttft_s for one in each]), q))
        found["itl", name] = gaps.quantile(q) / 1e9
    return found


def pooled(parts: Sequence[Histogram]) -> Histogram:
    """Histograms over the same bins as one."""
    return Histogram(
        parts[0].lower,
        np.sum([part.count for part in parts], axis=0),
        sum(part.total for part in parts),
        max(part.maximum for part in parts),
    )


def joined(parts: Sequence[StepTimes]) -> StepTimes:
    """The steps of several runs."""
    return StepTimes(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def rows(repeats: Sequence[Repeat]) -> list[dict[str, object]]:
    """Each quantity: every repeat measured and predicted, their spread, and the error of the median of the predictions.

    A repeat's prediction is the median of its draws; the spread is (largest - smallest) / median.
    """
    measured = [latencies_s(repeat.measured) for repeat in repeats]
    drawn = [[latencies_s(draw) for draw in repeat.predicted] for repeat in repeats]
    found: list[dict[str, object]] = []
    for metric in METRICS:
        for quantile, aim in AIMS.items():
            seen = [each[metric, quantile] for each in measured]
            told = [float(np.median([each[metric, quantile] for each in draws])) for draws in drawn]
            middle, expected = float(np.median(seen)), float(np.median(told))
            error = expected / middle - 1.0
            found.append(
                {
                    "name": f"{metric.upper()} {quantile}",
                    "measured_s": seen,
                    "each_predicted_s": told,
                    "spread": (max(seen) - min(seen)) / middle,
                    "predicted_s": expected,
                    "error": error,
                    "aim": aim,
                    "met": abs(error) <= aim,
                }
            )
    return found


def row_lines(found: Sequence[dict[str, object]]) -> list[str]:
    """The rows for people."""
    each = max(len(_milliseconds(row["measured_s"])) for row in found)
    each = max(each, len("predicted"))
    lines = [f"{'ms':10}{'measured':>{each}}{'spread':>9}  {'predicted':>{each}}{'error':>9}{'aim':>6}"]
    for row in found:
        measured, told = _milliseconds(row["measured_s"]), _milliseconds(row["each_predicted_s"])
        lines.append(
            f"{row['name']:10}{measured:>{each}}{row['spread']:9.1%}  {told:>{each}}{row['error']:+9.1%}"
            f"{row['aim']:6.0%} {'met' if row['met'] else 'missed'}"
        )
    return lines


def _milliseconds(values_s: object) -> str:
    assert isinstance(values_s, list)
    return " ".join(f"{1e3 * value:7.1f}" for value in values_s)
