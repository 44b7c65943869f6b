"""Latency against load: replays of the same workload, slower and faster, with the targets as lines."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from simkit.metrics.load import LoadPoint
from simkit.metrics.result import F64
from simkit.metrics.slo import LONGEST_S, SHORTEST_S, Target, targets
from simkit.report.figures.axes import drawable, linear_seconds, log_seconds, percent, plain_numbers
from simkit.report.figures.cdf import TITLES
from simkit.report.figures.svg import panel, to_svg
from simkit.report.palette import FAINT, INK, METRIC, PARTS
from simkit.report.units import multiple, rate, seconds, share

HIGHEST_LOAD = 1e6  # multiples beyond this are no loads
LOG_FROM = 15.0  # ratio of the largest to the smallest latency from which the axis is logarithmic


def load_figures(sweep: Sequence[LoadPoint], slo: Mapping[str, float]) -> list[str]:
    """Panels of TTFT, TPOT, E2E and goodput against load; [] when nothing but the run itself is known."""
    points = sorted((p for p in sweep if 0 <= p.load <= HIGHEST_LOAD), key=lambda point: point.load)
    if len(points) < 2:
        return []
    limits = targets(slo)
    figures = [_latency(points, m, [t for t in limits if t.metric == m]) for m in ("ttft", "tpot", "e2e")]
    return [*figures, _goodput(points)]


def _latency(points: list[LoadPoint], metric: str, limits: list[Target]) -> str:
    with panel(f"{TITLES[metric]} against load") as (figure, axes):
        said, seen = [], [target.limit_s for target in limits]
        for statistic, style in (("p50", ":"), ("p99", "-")):
            values = drawable(
                np.array([getattr(point, f"{metric}_{statistic}_s") for point in points]), SHORTEST_S, LONGEST_S
            )
            _line(axes, points, values, METRIC[metric], style, statistic)
            seen += [float(v) for v in values if v > 0]
            said += [f"{statistic} {seconds(v)} at {multiple(p.load)}" for p, v in zip(points, values, strict=True)]
        for target in limits:
            axes.axhline(target.limit_s, color=INK, linestyle=(0, (4, 3)), linewidth=1.1)
            text = f"{target.statistic} target {seconds(target.limit_s)}"
            axes.annotate(
                text,
                (0.01, target.limit_s),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                fontsize=8,
                color=FAINT,
            )
        if seen and max(seen) / min(seen) > LOG_FROM:
            log_seconds(axes.yaxis, min(seen), max(seen))
            axes.set_ylim(min(seen) / 1.5, max(seen) * (max(seen) / min(seen)) ** 0.25)  # room for the legend
        else:
            linear_seconds(axes.yaxis)
            axes.set_ylim(0, max(seen, default=1.0) * 1.3)
        _load_axis(axes, points)
        axes.legend(loc="upper left", ncols=2)
        return to_svg(figure, f"load-{metric}", f"{TITLES[metric]} against load: " + "; ".join(said + _said(points)))


def _goodput(points: list[LoadPoint]) -> str:
    with panel("Goodput against load") as (figure, axes):
        values = drawable(np.array([point.goodput_fraction for point in points]), 0.0, 1.0)
        _line(axes, points, values, PARTS["prefill"], "-", "goodput")
        percent(axes.yaxis)
        axes.set_ylim(0, 1.05)
        axes.set_ylabel("requests within all targets")
        _load_axis(axes, points)
        said = [f"{share(v)} at {multiple(p.load)}" for p, v in zip(points, values, strict=True)]
        return to_svg(figure, "load-goodput", "Goodput against load: " + "; ".join(said + _said(points)))


def _line(axes: Axes, points: list[LoadPoint], values: F64, colour: str, style: str, label: str) -> None:
    """Stable replays joined by a line; saturated ones as crosses on their own, for they are no point of a curve."""
    load = np.array([point.load for point in points])
    saturated = np.array([point.saturated for point in points])
    stable = ~saturated
    axes.plot(load[stable], values[stable], style, color=colour, marker="o", markersize=4, label=label)
    if saturated.any():
        axes.plot(load[saturated], values[saturated], "x", color=colour, markersize=6, markeredgewidth=1.6)


def _load_axis(axes: Axes, points: list[LoadPoint]) -> None:
    """The load axis, with this run and the loads of growing queues marked."""
    low, high = points[0].load, points[-1].load
    margin = (high - low) * 0.05 or 0.1
    saturated = [point.load for point in points if point.saturated]
    stable = [point.load for point in points if not point.saturated and (not saturated or point.load < saturated[0])]
    if saturated:
        start = (saturated[0] + stable[-1]) / 2 if stable else low - margin
        axes.axvspan(start, high + margin, color=PARTS["preempted"], alpha=0.10, linewidth=0)
        axes.text(high + margin, 0.03, "queue grows ", transform=axes.get_xaxis_transform(), ha="right", fontsize=8)
    axes.axvline(1.0, color=FAINT, linewidth=0.8)
    axes.set_xlim(low - margin, high + margin)
    plain_numbers(axes.xaxis)
    here = next((point.rate_per_s for point in points if point.load == 1.0), None)
    axes.set_xlabel("load, × the workload's rate" + (f" (1 = {rate(here, 'req')})" if here is not None else ""))


def _said(points: list[LoadPoint]) -> list[str]:
    saturated = [multiple(point.load) for point in points if point.saturated]
    return [f"the queue grows at {', '.join(saturated)}"] if saturated else []
