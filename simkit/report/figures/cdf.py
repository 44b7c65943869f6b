"""How latencies are spread: the share of requests (or gaps) at or below each latency."""

import numpy as np

from simkit.metrics.result import F64, Histogram
from simkit.metrics.slo import Target
from simkit.report.figures.axes import log_seconds, percent, thin_quantiles
from simkit.report.figures.svg import panel, to_svg
from simkit.report.palette import FAINT, INK, METRIC
from simkit.report.units import count, seconds

TITLES = {
    "ttft": "Time to first token (TTFT)",
    "tpot": "Time per output token (TPOT)",
    "itl": "Gaps between tokens (ITL)",
    "e2e": "End to end (E2E)",
}


def latency_cdf(metric: str, values_s: F64, limits: list[Target], steady: bool) -> str | None:
    """The distribution of one value a request, NaN left out; None when there is nothing to draw.

    Percentiles are marked only when `steady`: under a growing queue they say how long the run was.
    """
    known = values_s[np.isfinite(values_s)]
    if not len(known):
        return None
    x, y = thin_quantiles(known)
    marks = [(q, float(np.quantile(known, q))) for q in (0.5, 0.99)] if steady else []
    style = "steps-post" if len(x) < 60 else "default"  # few requests are few steps, not a slope between them
    return _draw(metric, x, y, marks, limits, f"{count(len(known))} requests", style)


def gap_cdf(histogram: Histogram, limits: list[Target], steady: bool) -> str | None:
    """The distribution of gaps between consecutive tokens, from its histogram in ns; None when it is empty."""
    total = int(histogram.count.sum())
    if not total:
        return None
    upper = np.minimum(np.append(histogram.lower[1:], histogram.maximum), histogram.maximum)
    filled = np.flatnonzero(histogram.count)
    first = int(filled[0])
    x = np.append(histogram.lower[first], upper[filled]) / 1e9
    y = np.append(0.0, np.cumsum(histogram.count[filled]) / total)
    marks = [(q, histogram.quantile(q) / 1e9) for q in (0.5, 0.99)] if steady else []
    return _draw("itl", x, y, marks, limits, f"{count(total)} gaps", "default")


def _draw(
    metric: str, x: F64, y: F64, marks: list[tuple[float, float]], limits: list[Target], population: str, style: str
) -> str:
    positive = x[x > 0]
    floor = float(positive.min()) if len(positive) else 1e-3
    low, high = floor, max([float(x.max()), floor, *(target.limit_s for target in limits)])
    if high < low * 1.2:
        low, high = low / 1.5, high * 1.5
    with panel(TITLES[metric]) as (figure, axes):
        # a latency of 0 has no place on a logarithmic axis; it is drawn at the smallest positive one
        axes.plot(np.maximum(x, floor), y, color=METRIC[metric], drawstyle=style)
        for q, value in marks:
            axes.plot([max(value, floor)], [q], "o", color=METRIC[metric], markersize=4.5)
            axes.annotate(
                f"p{100 * q:.0f} {seconds(value)}",
                (max(value, floor), q),
                # a rising curve leaves the place below and right of each of its points free
                xytext=(6, -10),
                textcoords="offset points",
                fontsize=8.5,
            )
        for target in limits:
            axes.axvline(target.limit_s, color=INK, linestyle=(0, (4, 3)), linewidth=1.1)
            axes.text(
                target.limit_s,
                0.02,
                f" {target.statistic} target",
                rotation=90,
                ha="right",
                va="bottom",
                fontsize=8,
                color=FAINT,
            )
        log_seconds(axes.xaxis, low, high)
        room = (high / low) ** 0.3  # for the label of the rightmost mark
        axes.set_xlim(low / 1.15, max([high * 1.15, *(max(value, floor) * room for _, value in marks)]))
        percent(axes.yaxis)
        axes.set_ylim(0, 1.03)
        axes.set_ylabel(f"share of {population}")
        said = "; ".join(f"p{100 * q:.0f} {seconds(value)}" for q, value in marks)
        description = f"{TITLES[metric]}, cumulative distribution over {population}, {seconds(float(x.min()))} to "
        return to_svg(figure, f"cdf-{metric}", description + seconds(float(x.max())) + (f"; {said}" if said else ""))
