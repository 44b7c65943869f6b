"""A measured run beside its prediction, for a terminal and as one page that holds everything."""

import numpy as np
from rich.table import Table
from rich.text import Text

from simkit.metrics.comparison import KINDS, LATENCIES, Comparison, Pair, comparison_tree
from simkit.metrics.latency import finished_latencies
from simkit.metrics.result import F64, RunResult, Series
from simkit.report.facts import METRIC_NAMES
from simkit.report.figures.axes import elapsed, log_seconds, percent, plain_numbers, thin_quantiles, thin_series
from simkit.report.figures.svg import panel, to_svg
from simkit.report.html import page
from simkit.report.markup import figures, table, text
from simkit.report.palette import INK, PARTS
from simkit.report.units import by_name, significant

MEASURED, PREDICTED = PARTS["prefill"], PARTS["preempted"]
_KIND_COLOURS = (PARTS["prefill"], PARTS["decode"], PARTS["stalled"])


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Quantities measured and predicted, then the errors of single steps by kind."""
    quantities = _numbers("", ("measured", "predicted", "error"))
    for row in _pair_rows(comparison.pairs):
        quantities.add_row(*map(Text, row))
    steps = _numbers("step times", _STEP_HEAD[1:])
    for row in _kind_rows(comparison):
        steps.add_row(*map(Text, row))
    return [quantities, steps]


def comparison_page(comparison: Comparison, title: str, facts: list[tuple[str, str]], partial: str = "") -> str:
    """One HTML document: what was measured, the tables, both runs' time series and distributions laid over each other.

    `facts` are printed first; `partial` says what cut the run short. Text from outside is escaped.
    """
    banner = (
        f'<div class="banner unsure"><b>Partial:</b> {text(partial)}. What follows covers what was served until then.'
        "</div>"
        if partial
        else ""
    )
    numbers = table("Measured and predicted", ("", "measured", "predicted", "error"), _pair_rows(comparison.pairs))
    kinds = table("Step times, given the same batches", _STEP_HEAD, _kind_rows(comparison))
    over_time = figures(_series(comparison), "Both runs over time: measured and predicted, of the same arrivals.")
    spread = figures(_distributions(comparison), "Share of requests at or below each latency.")
    singles = figures([_steps(comparison)], "Each step of the run beside what the step-time model says of that batch.")
    return page(
        title,
        banner,
        table("This run", ("", ""), facts),
        [
            ("numbers", "Measured beside predicted", numbers),
            ("time", "Over time", over_time),
            ("latency", "Latencies", spread),
            ("steps", "Single steps", kinds + singles),
        ],
        comparison_tree(comparison),
    )


_STEP_HEAD = ("step times", "steps", "measured p50", "expected p50", "median error", "p90 error", "bias")


def _pair_rows(pairs: tuple[Pair, ...]) -> list[list[str]]:
    return [
        [_label(pair.name), *(by_name(pair.name, v) for v in (pair.measured, pair.predicted)), _signed(pair.error)]
        for pair in pairs
    ]


def _label(name: str) -> str:
    """`ttft_p50_s` as `TTFT p50`, others in words."""
    first, *rest = name.removesuffix("_s").split("_")
    if first in METRIC_NAMES:
        return f"{METRIC_NAMES[first]} {rest[0]}"
    words = name.replace("_per_s", " a second").removesuffix("_s").removesuffix("_share").replace("_", " ")
    return words.replace("kv ", "KV held, ").replace("batch requests", "requests a step,").replace(
        "batch tokens", "tokens a step,"
    ).capitalize().replace("Kv", "KV")  # fmt: skip


def _kind_rows(comparison: Comparison) -> list[list[str]]:
    return [
        [
            error.kind,
            f"{error.steps:,}",
            by_name("p50_s", error.measured_p50_s),
            by_name("p50_s", error.expected_p50_s),
            f"{100 * error.median_abs:.1f} %",
            f"{100 * error.p90_abs:.1f} %",
            _signed(error.bias),
        ]
        for error in comparison.kinds
    ]


def _signed(error: float | None) -> str:
    return "" if error is None else f"{100 * error:+.1f} %"


def _numbers(first: str, columns: tuple[str, ...]) -> Table:
    found = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    found.add_column(first, no_wrap=True)
    for name in columns:
        found.add_column(name, justify="right", no_wrap=True)
    return found


def _series(comparison: Comparison) -> list[str]:
    """Panels of both runs over the same time axis."""
    runs = (comparison.measured.series, comparison.predicted.series)
    wanted = (
        ("running", "Requests running", "requests"),
        ("waiting", "Requests waiting", "requests"),
        ("kv_used", "KV blocks held", "share"),
        ("tokens_per_s", "Tokens computed a second", "tok/s"),
    )
    return [_over_time(name, title, unit, runs) for name, title, unit in wanted]


def _over_time(name: str, title: str, unit: str, runs: tuple[Series, Series]) -> str:
    end_s = max(series.bucket_ns / 1e9 * len(series.running) for series in runs)
    said = []
    with panel(title) as (figure, axes):
        scale_s, _ = elapsed(axes.xaxis, end_s)
        for label, colour, style, series in zip(
            ("measured", "predicted"), (MEASURED, PREDICTED), ("-", (0, (3, 1.5))), runs, strict=True
        ):
            values: F64 = getattr(series, name)
            mean, _, _ = thin_series(values)
            group = -(-len(values) // max(1, len(mean)))
            x = (series.start_s()[::group] + series.bucket_ns / 1e9 * group / 2) / scale_s
            axes.plot(x, mean, color=colour, label=label, linewidth=1.1, linestyle=style)
            said.append(f"{label} mean {significant(float(values.mean()) if len(values) else 0.0)}")
        if unit == "share":
            percent(axes.yaxis)
        else:
            plain_numbers(axes.yaxis)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.15)
        axes.legend(loc="upper left", ncols=2)
        return to_svg(figure, f"both-{name.replace('_', '-')}", f"{title}: {'; '.join(said)}")


def _distributions(comparison: Comparison) -> list[str]:
    runs = (comparison.measured, comparison.predicted)
    return [svg for metric in LATENCIES if metric != "itl" if (svg := _spread(metric, runs))]


def _spread(metric: str, runs: tuple[RunResult, RunResult]) -> str | None:
    values = [getattr(finished_latencies(run.requests), f"{metric}_s") for run in runs]
    values = [each[np.isfinite(each) & (each > 0)] for each in values]
    if not all(len(each) for each in values):
        return None
    low, high = min(float(each.min()) for each in values), max(float(each.max()) for each in values)
    with panel(METRIC_NAMES[metric]) as (figure, axes):
        for label, colour, each in zip(("measured", "predicted"), (MEASURED, PREDICTED), values, strict=True):
            x, y = thin_quantiles(each)
            axes.plot(x, y, color=colour, label=label, drawstyle="steps-post")
        log_seconds(axes.xaxis, low / 1.05, max(high, low * 1.3) * 1.05)
        percent(axes.yaxis)
        axes.legend(loc="lower right")
        return to_svg(figure, f"spread-{metric}", f"{METRIC_NAMES[metric]}: measured and predicted distributions")


def _steps(comparison: Comparison) -> str:
    """Expected over measured device time, a point a step."""
    steps = comparison.steps
    with panel("Steps: expected against measured") as (figure, axes):
        x, y = steps.device_ns / 1e9, np.maximum(steps.expected_device_ns, 1) / 1e9
        low = float(min(x.min(), y.min())) if len(x) else 1e-3
        high = float(max(x.max(), y.max())) if len(x) else 1.0
        # a few thousand points show as much as all of them
        every = max(1, len(x) // 2000)
        for kind, name in enumerate(KINDS):
            part = np.flatnonzero(steps.kind == kind)[::every]
            axes.plot(x[part], y[part], ".", color=_KIND_COLOURS[kind], markersize=3, label=name, alpha=0.6)
        axes.plot([low, high], [low, high], color=INK, linewidth=0.8)
        log_seconds(axes.xaxis, low, max(high, 1.3 * low))
        log_seconds(axes.yaxis, low, max(high, 1.3 * low))
        axes.set_xlabel("measured")
        axes.set_ylabel("expected")
        axes.legend(loc="upper left")
        return to_svg(figure, "steps", "Expected against measured device time of each step, by kind")
