"""The comparison on a terminal."""

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from simkit.fidelity.comparison import WHOLE, Compared, ComparedRun, ErrorSummary

SHOWN = ("itl_mean", "ttft_mean", "ttft_p90", "ttft_p99", "e2e_mean", "e2e_p90", "e2e_p99")
ON_A_TERMINAL = ("itl_mean", "ttft_mean", "ttft_p99", "e2e_mean")  # as many as fit in 120 columns
NAMES = {"itl": "ITL", "ttft": "TTFT", "e2e": "E2E"}
LARGE_PCT = 15.0


def heading(metric: str) -> str:
    """`ttft_p99` as `TTFT p99`."""
    kind, _, statistic = metric.partition("_")
    return f"{NAMES[kind]} {statistic}"


def cells(stage: Compared, metric: str) -> tuple[str, str]:
    """`predicted / measured` and the error, both empty where one is not known."""
    error = stage.error_pct(metric)
    if error is None:
        return "", ""
    return f"{milliseconds(stage.predicted[metric])} / {milliseconds(stage.measured[metric])}", f"{error:+.1f} %"


def milliseconds(value: float) -> str:
    """Four digits at most."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def runs_table(runs: Iterable[ComparedRun], stages: bool) -> Table:
    """Predicted / measured in ms and the error of each run, with `stages` of each stage too."""
    table = Table(title="predicted / measured, ms", title_justify="left", box=None, padding=(0, 1))
    table.add_column("run", overflow="ellipsis", no_wrap=True, max_width=26)
    for metric in ON_A_TERMINAL:
        table.add_column(heading(metric), justify="right", no_wrap=True)
    for run in runs:
        for stage in run.stages if stages else (run.whole,):
            own = stage.stage == WHOLE
            label = Text(run.id if own else f"  {stage.stage}", style="" if own else "dim")
            table.add_row(label, *(_cell(stage, metric) for metric in ON_A_TERMINAL))
    return table


def _cell(stage: Compared, metric: str) -> Text:
    both, error = cells(stage, metric)
    off = stage.error_pct(metric)
    style = "dim" if stage.excluded else "yellow" if off is not None and abs(off) > LARGE_PCT else ""
    return Text(f"{both} {error}".strip(), style=style)


def summary_table(title: str, summaries: Mapping[str, ErrorSummary]) -> Table:
    """Errors over runs, a row a metric."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    for name in ("metric", "median abs", "mean abs", "median signed", "worst", "in 90 % interval", "n"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for metric, row in summaries.items():
        inside = "" if row.inside_interval is None else f"{row.inside_interval:.0%}"
        table.add_row(
            heading(metric),
            f"{row.median_abs_pct:.1f} %",
            f"{row.mape_pct:.1f} %",
            f"{row.median_signed_pct:+.1f} %",
            f"{row.worst_pct:+.1f} %",
            inside,
            str(row.n),
        )
    return table
