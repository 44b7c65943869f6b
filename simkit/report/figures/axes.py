"""Axes in units that people read, and lines thinned to what a screen can show."""

import math

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from simkit.metrics.result import F64
from simkit.report.units import seconds

MAX_POINTS = 500  # a line; a panel is at most some 600 pixels wide


def log_seconds(axis: Axis, low_s: float, high_s: float) -> None:
    """A logarithmic time axis over [low_s, high_s] > 0, ticks at 1 (2, 5) x powers of ten as `10 ms`, `1 s`."""
    if axis is axis.axes.xaxis:
        axis.axes.set_xscale("log")
    else:
        axis.axes.set_yscale("log")
    decades = math.log10(high_s / low_s)
    steps = (1.0, 2.0, 5.0) if decades < 1.7 else (1.0, 3.0) if decades < 3 else (1.0,)
    axis.set_major_locator(LogLocator(base=10.0, subs=steps, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick_seconds(value)))


def linear_seconds(axis: Axis) -> None:
    """A linear time axis with ticks as `10 ms`, `1 s`."""
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick_seconds(value)))


def elapsed(axis: Axis, end_s: float) -> tuple[float, str]:
    """A linear axis over [0, end_s] of time gone by; returns the unit that data are to be given in, (s in it, name)."""
    units = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
    scale, name = next((unit for unit in units if end_s >= 3 * unit[0]), units[-1])
    plain_numbers(axis)
    axis.set_label_text(f"time since the workload began, {name}")
    return scale, name


def plain_numbers(axis: Axis) -> None:
    """A linear axis with ticks as `1,500`."""
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"))


def percent(axis: Axis) -> None:
    """An axis of shares from 0 to 1, ticks as `40 %`."""
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))


def drawable(values: F64, low: float, high: float) -> F64:
    """`values` with NaN, which is not drawn, for all but 0 and [low, high]: nonsense must not stretch an axis."""
    values = values.astype(np.float64)
    return np.where((values == 0) | ((values >= low) & (values <= high)), values, np.nan)


def thin_quantiles(values: F64) -> tuple[F64, F64]:
    """(values, share of values at or below each), at most `MAX_POINTS` of them and most in the tail; NaN left out."""
    ordered = np.sort(values[np.isfinite(values)])
    n = len(ordered)
    rank = np.arange(n)
    if n > MAX_POINTS:
        half = MAX_POINTS // 2
        tail = n - 1 - np.geomspace(1, n, half)
        rank = np.unique(np.clip(np.concatenate((np.linspace(0, n - 1, half), tail)), 0, n - 1).astype(np.int64))
    return ordered[rank], (rank + 1.0) / max(1, n)


def thin_series(values: F64) -> tuple[F64, F64, F64]:
    """(mean, minimum, maximum) of groups of equal size of a time series, at most `MAX_POINTS` groups."""
    size = math.ceil(len(values) / MAX_POINTS) or 1
    edges = np.arange(0, len(values), size)
    lengths = np.diff(np.append(edges, len(values)))
    if not len(values):
        return values, values, values
    return (
        np.add.reduceat(values, edges) / lengths,
        np.minimum.reduceat(values, edges),
        np.maximum.reduceat(values, edges),
    )


def _tick_seconds(value_s: float) -> str:
    text = seconds(value_s)
    number, _, unit = text.partition(" ")
    # ticks are round numbers: 10 ms, not 10.0 ms
    return f"{float(number):g} {unit}" if "." in number else text
