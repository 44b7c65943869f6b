"""How wrong a profile is, as one page: errors by operator and regime, predicted against measured, error over size."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simkit.metrics.result import F64
from simkit.report.figures.axes import log_seconds, percent
from simkit.report.figures.svg import panel, to_svg
from simkit.report.html import page
from simkit.report.markup import Cell, figures, table, text
from simkit.report.palette import FAINT, INK, PARTS

MOST_DOTS = 400  # of one panel: a page of thirty panels stays under 2 MB
MOST_ERROR = 0.5  # drawn; a larger one lies on the edge


class ErrorLine(NamedTuple):
    """The errors of a part of the held-out points; shares of the measured time."""

    operator: str
    region: str
    part: str
    rows: int
    mape: float
    low: float  # of a 90 % interval of mape; NaN of a single point
    high: float
    p50: float
    p90: float
    p95: float
    worst: float
    bias: float


class Cloud(NamedTuple):
    """Predictions of one region."""

    name: str  # fit for an anchor
    heading: str
    rule: str  # what was held out
    predicted_ns: F64
    measured_ns: F64
    size: F64
    size_name: str


HEAD = ("operator", "held out", "part", "points", "MAPE", "90 % interval", "p50", "p90", "p95", "worst", "bias")


def render_calibration(
    title: str, notes: Sequence[str], lines: Sequence[ErrorLine], clouds: Sequence[Cloud], data: object
) -> str:
    """The page as one HTML document; the same values give the same bytes."""
    said = "".join(f'<p class="note">{text(note)}</p>' for note in notes)
    numbers = table("Errors on points that the fit did not see", HEAD, [_row(line) for line in lines], sortable=True)
    sections = [(cloud.name, cloud.heading, _section(cloud)) for cloud in clouds]
    return page(title, said, numbers, sections, data)


def share(value: float) -> str:
    """0.0412 as `4.1 %`, which no line breaks."""
    return f"{100 * value:.1f}\u00a0%"


def _row(line: ErrorLine) -> list[Cell | str]:
    interval = Cell("") if math.isnan(line.low) else Cell(f"{100 * line.low:.1f} to {share(line.high)}", line.low)
    shares = [Cell(share(value), value) for value in (line.p50, line.p90, line.p95, line.worst)]
    return [
        line.operator,
        line.region,
        line.part,
        Cell(f"{line.rows:,}", line.rows),
        Cell(share(line.mape), line.mape),
        interval,
        *shares,
        Cell(f"{100 * line.bias:+.1f}\u00a0%", line.bias),
    ]


def _section(cloud: Cloud) -> str:
    step = max(1, len(cloud.size) // MOST_DOTS)
    order = np.argsort(cloud.measured_ns, kind="stable")[::step]  # even over time, the same dots each time
    thin = cloud._replace(
        predicted_ns=cloud.predicted_ns[order], measured_ns=cloud.measured_ns[order], size=cloud.size[order]
    )
    caption = f"Held out: {cloud.rule}. {len(order):,} of {len(cloud.size):,} points are drawn."
    return figures([_against(thin), _residuals(thin)], caption)


def _against(cloud: Cloud) -> str:
    with panel("predicted against measured") as (figure, axes):
        both = np.concatenate([cloud.predicted_ns, cloud.measured_ns]) / 1e9
        low, high = float(both.min()) * 0.8, float(both.max()) * 1.25
        axes.plot([low, high], [low, high], color=FAINT, linewidth=0.8)
        axes.plot(cloud.measured_ns / 1e9, cloud.predicted_ns / 1e9, ".", color=PARTS["prefill"], markersize=2.2)
        log_seconds(axes.xaxis, low, high)
        log_seconds(axes.yaxis, low, high)
        axes.set_xlabel("measured")
        axes.set_ylabel("predicted")
        return to_svg(figure, f"{cloud.name}-against", f"{cloud.heading}: predicted against measured times")


def _residuals(cloud: Cloud) -> str:
    with panel(f"error over {cloud.size_name}") as (figure, axes):
        off = np.clip(cloud.predicted_ns / cloud.measured_ns - 1.0, -MOST_ERROR, MOST_ERROR)
        axes.axhline(0.0, color=INK, linewidth=0.8)
        axes.plot(cloud.size, off, ".", color=PARTS["preempted"], markersize=2.2)
        axes.set_xscale("log")
        percent(axes.yaxis)
        axes.set_xlabel(cloud.size_name)
        axes.set_ylabel("predicted / measured - 1")
        return to_svg(figure, f"{cloud.name}-error", f"{cloud.heading}: error over {cloud.size_name}")
