"""The replica over time: requests, KV blocks, tokens a second, preemptions."""

from simkit.metrics.result import F64, Series
from simkit.report.figures.axes import elapsed, percent, plain_numbers, thin_series
from simkit.report.figures.svg import panel, to_svg
from simkit.report.palette import PARTS
from simkit.report.units import seconds, significant


def series_figures(series: Series) -> list[str]:
    """Panels of requests running and waiting, KV blocks held, tokens computed, and preemptions if any; [] if empty."""
    if not len(series.running):
        return []
    figures = [
        _panel(
            "requests",
            "Requests running and waiting",
            series,
            [("running", series.running, PARTS["decode"]), ("waiting", series.waiting, PARTS["queue"])],
            "requests",
        ),
        _panel("kv", "KV blocks held", series, [("KV blocks held", series.kv_used, PARTS["prefill"])], "share"),
        _panel(
            "tokens", "Tokens computed a second", series, [("tokens/s", series.tokens_per_s, PARTS["prefill"])], "tok/s"
        ),
        _panel("busy", "Device busy", series, [("busy", series.busy, PARTS["decode"])], "share"),
    ]
    if series.preemptions.any():
        per_s = series.preemptions / (series.bucket_ns / 1e9)
        figures.append(
            _panel(
                "preempt", "Preemptions a second", series, [("preemptions/s", per_s, PARTS["preempted"])], "a second"
            )
        )
    return figures


def _panel(name: str, title: str, series: Series, lines: list[tuple[str, F64, str]], unit: str) -> str:
    """Lines over time; where buckets were merged, a band spans their smallest and largest value."""
    step_s = series.bucket_ns / 1e9
    said = []
    with panel(title) as (figure, axes):
        scale_s, _ = elapsed(axes.xaxis, step_s * len(series.running))
        for label, values, colour in lines:
            mean, low, high = thin_series(values)
            group = -(-len(values) // len(mean))
            x = (series.start_s()[::group] + step_s * group / 2) / scale_s
            axes.plot(x, mean, color=colour, label=label, linewidth=1.1, marker="o" if len(x) == 1 else None)
            if group > 1:
                axes.fill_between(x, low, high, color=colour, alpha=0.3, linewidth=0)
            said.append(f"{label} mean {significant(float(values.mean()))}, peak {significant(float(values.max()))}")
        axes.set_xlim(0, step_s * len(series.running) / scale_s)
        axes.set_ylabel(unit)
        if unit == "share":
            percent(axes.yaxis)
            axes.set_ylim(0, 1.03)
        else:
            plain_numbers(axes.yaxis)
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.set_ylim(top=axes.get_ylim()[1] * 1.15)  # room for the legend
            axes.legend(loc="upper left", ncols=len(lines))
        description = f"{title} over {seconds(step_s * len(series.running))}: {'; '.join(said)}"
        return to_svg(figure, f"series-{name}", description)
