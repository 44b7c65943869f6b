"""The comparison as one page: a scatter of predicted against measured, and tables of errors."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from simkit.fidelity.comparison import Compared, ErrorSummary, Validation, as_json, by_stage, overall
from simkit.fidelity.table import SHOWN, cells, heading
from simkit.report.figures.svg import panel, to_svg
from simkit.report.html import page
from simkit.report.markup import Cell, figures, table, text
from simkit.report.palette import FAINT, INK, PARTS

DRAWN = ("itl_mean", "ttft_mean", "ttft_p99", "e2e_mean")
# one colour and mark a kind of device, in order of first appearance
MARKS = (("prefill", "o"), ("preempted", "s"), ("decode", "^"), ("stalled", "D"), ("queue", "v"), ("host", "P"))
BAND = 0.15
MOST_DRAWN = 2000


def render(validation: Validation) -> str:
    """The page as one HTML document; the same comparison gives the same bytes."""
    sections = [
        ("scatter", "Predicted against measured", _scatters(validation)),
        ("errors", "Errors over runs", _error_tables(validation)),
        ("runs", "Each run", _run_table(validation)),
        ("not-run", "Not run", _not_run(validation)),
    ]
    count = len(validation.runs)
    banner = f"<p>{count} runs replayed, {len(validation.not_run)} not run. Times are as a client sees them.</p>"
    return page("Predictions beside measured runs", banner, "", sections, as_json(validation))


def scatter(metric: str, points: Sequence[tuple[str, Compared]]) -> str | None:
    """Predicted against measured of one metric, a mark a stage, by hardware; None when nothing is known."""
    known = [(name, stage) for name, stage in points if stage.error_pct(metric) is not None][:MOST_DRAWN]
    if not known:
        return None
    names = list(dict.fromkeys(name for name, _ in known))
    values = np.array([[stage.measured[metric], stage.predicted[metric]] for _, stage in known])
    low, high = float(values.min()) / 1.3, float(values.max()) * 1.3
    with panel(f"{heading(metric)}, ms") as (figure, axes):
        line = np.array([low, high])
        axes.fill_between(line, line / (1 + BAND), line * (1 + BAND), color=FAINT, alpha=0.12, linewidth=0)
        axes.plot(line, line, color=INK, linewidth=0.8)
        for index, name in enumerate(names):
            part, mark = MARKS[index % len(MARKS)]
            mine = values[[other == name for other, _ in known]]
            axes.plot(mine[:, 0], mine[:, 1], mark, color=PARTS[part], markersize=4, label=name, alpha=0.85)
        for axis in (axes.xaxis, axes.yaxis):
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(base=10.0, subs=(1.0, 2.0, 5.0), numticks=12))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel("measured")
        axes.set_ylabel("predicted")
        axes.legend(loc="upper left")
        worst = float(np.max(np.abs(values[:, 1] / values[:, 0] - 1.0)))
        return to_svg(
            figure,
            f"scatter-{metric}",
            f"{heading(metric)}: predicted against measured, {len(known)} stages, the farthest {worst:.0%} off",
        )


def _scatters(validation: Validation) -> str:
    points = [
        (run.hardware, stage)
        for run in validation.runs
        for stage in ([part for part in run.stages if part.stage != "whole" and part.measured] or [run.whole])
    ]
    drawn = [svg for metric in DRAWN if (svg := scatter(metric, points)) is not None]
    return figures(drawn, f"A mark a stage. On the line the prediction is exact; the band is {BAND:.0%} either way.")


def _error_tables(validation: Validation) -> str:
    return _errors("Whole runs", overall(validation.runs)) + _errors("Single stages", by_stage(validation.runs))


def _errors(caption: str, summaries: dict[str, ErrorSummary]) -> str:
    head = ("metric", "median abs", "mean abs", "median signed", "worst", "in 90 % interval", "n")
    rows = [
        (
            heading(metric),
            f"{row.median_abs_pct:.1f} %",
            f"{row.mape_pct:.1f} %",
            f"{row.median_signed_pct:+.1f} %",
            f"{row.worst_pct:+.1f} %",
            "" if row.inside_interval is None else f"{row.inside_interval:.0%}",
            str(row.n),
        )
        for metric, row in summaries.items()
    ]
    return table(caption, head, rows)


def _run_table(validation: Validation) -> str:
    rows: list[Sequence[Cell | str]] = []
    for run in validation.runs:
        for stage in run.stages:
            errors = [Cell(" ".join(cells(stage, metric)), stage.error_pct(metric)) for metric in SHOWN]
            in_flight = "" if stage.in_flight is None else f"{stage.in_flight:.0f}"
            rows.append((run.id, stage.stage, in_flight, *errors, stage.excluded or ""))
    head = ("run", "stage", "in flight", *(heading(metric) for metric in SHOWN), "excluded")
    return table("Predicted / measured in ms, and the error; sorted by error", head, rows, sortable=True)


def _not_run(validation: Validation) -> str:
    if not validation.not_run:
        return f"<p>{text('Every run was replayed.')}</p>"
    return table(
        "Runs that could not be replayed", ("run", "why"), [(run.id, run.reason) for run in validation.not_run]
    )
