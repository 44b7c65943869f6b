"""Figures of a plan: price against latency, rates held under stress, figures with their intervals, and heat maps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simkit.metrics.result import F64
from simkit.report.figures.axes import log_seconds, plain_numbers
from simkit.report.figures.svg import panel, to_svg
from simkit.report.palette import FAINT, INK, PARTS

MOST_PROMISES = 10.0  # an interval is drawn up to so many times the promise


@dataclass(frozen=True)
class Priced:
    """One deployment that holds: its price and one of its latencies."""

    label: str
    usd_per_hour: float
    latency_s: float
    on_front: bool
    chosen: bool


def front_figure(points: Sequence[Priced], latency: str) -> str | None:
    """Price against a latency, the front as a line; None for fewer than two."""
    drawn = [point for point in points if point.latency_s > 0]
    if len(drawn) < 2:
        return None
    with panel("Price against latency") as (figure, axes):
        axes.plot([p.latency_s for p in drawn], [p.usd_per_hour for p in drawn], "o", color=FAINT, markersize=3.5)
        front = sorted((p for p in drawn if p.on_front), key=lambda point: point.latency_s)
        axes.plot([p.latency_s for p in front], [p.usd_per_hour for p in front], "o-", color=PARTS["prefill"])
        for point in drawn:
            if point.chosen:
                axes.plot([point.latency_s], [point.usd_per_hour], "o", color=PARTS["preempted"], markersize=7)
                axes.annotate(
                    "chosen", (point.latency_s, point.usd_per_hour), xytext=(6, 6), textcoords="offset points"
                )
        log_seconds(axes.xaxis, min(p.latency_s for p in drawn), max(p.latency_s for p in drawn))
        axes.set_xlabel(latency)
        axes.set_ylabel("USD/h")
        axes.set_ylim(0, max(p.usd_per_hour for p in drawn) * 1.1)
        plain_numbers(axes.yaxis)
        said = "; ".join(f"{p.label}: {p.usd_per_hour:.2f} USD/h, {p.latency_s:.3g} s" for p in front)
        return to_svg(figure, "plan-front", f"Price against {latency}; on the front: {said}")


def held_figure(title: str, names: Sequence[str], held: Sequence[float], asked: float, name: str = "plan-held") -> str:
    """The rate held under each name as a bar, beside the rate asked."""
    with panel(title) as (figure, axes):
        colours = [PARTS["decode"] if rate >= asked else PARTS["preempted"] for rate in held]
        places = np.arange(len(names))
        axes.barh(places, held, color=colours, height=0.65)
        axes.axvline(asked, color=INK, linestyle=(0, (4, 3)), linewidth=1.1)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlabel("requests/s; line: asked")
        plain_numbers(axes.xaxis)
        said = "; ".join(f"{label} {rate:.3g}" for label, rate in zip(names, held, strict=True))
        return to_svg(figure, name, f"{title}, requests/s, {asked:.3g} asked: {said}")


def interval_figure(title: str, names: Sequence[str], low: F64, value: F64, high: F64, name: str) -> str:
    """Each figure over its limit, with its interval; the line at 1 is the limit, an arrow an end that is not drawn."""
    with panel(title) as (figure, axes):
        places = np.arange(len(names))
        seen = np.concatenate((value, high))
        edge = min(MOST_PROMISES, 1.1 * float(seen[seen < MOST_PROMISES].max(initial=1.5)))
        top = np.minimum(high, edge)
        axes.hlines(places, low, top, color=PARTS["prefill"], linewidth=3, alpha=0.5)
        beyond = high > edge
        axes.plot(top[beyond], places[beyond], ">", color=PARTS["prefill"])
        axes.plot(value, places, "o", color=PARTS["prefill"])
        axes.axvline(1.0, color=INK, linestyle=(0, (4, 3)), linewidth=1.1)
        axes.set_yticks(places, names)
        axes.set_xlim(0, max(1.2, float(top.max(initial=1.0)) * 1.05))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("measured over promised; line: the promise")
        rows = zip(names, low.tolist(), value.tolist(), high.tolist(), strict=True)
        said = "; ".join(f"{label} {middle:.2f} ({below:.2f} to {above:.2f})" for label, below, middle, above in rows)
        return to_svg(figure, name, f"{title}, share of the promise: {said}")


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: F64,
    row_label: str,
    column_label: str,
    name: str,
) -> str:
    """f64[rows, columns] as colours with their numbers; NaN is drawn empty, with a dash."""
    with panel(title) as (figure, axes):
        axes.grid(False)
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        scaled = np.log(values / low) / max(np.log(high / low), 1e-9) if low > 0 else values / max(high, 1e-12)
        axes.imshow(scaled, cmap="YlGnBu", vmin=-0.1, vmax=1.4, aspect="auto")
        for i in range(len(rows)):
            for j in range(len(columns)):
                shown = f"{values[i, j]:.3g}" if np.isfinite(values[i, j]) else "–"
                axes.text(j, i, shown, ha="center", va="center", fontsize=8, color="#1b1c1d")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(column_label)
        axes.set_ylabel(row_label)
        said = "; ".join(
            f"{rows[i]}: " + ", ".join(f"{value:.3g}" for value in values[i].tolist()) for i in range(len(rows))
        )
        return to_svg(figure, name, f"{title}, {row_label} by {column_label} ({', '.join(columns)}): {said}")
