"""The same numbers on a terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from simkit.metrics.load import LoadPoint
from simkit.metrics.slo import STATISTICS
from simkit.report.data import at
from simkit.report.facts import latency_rows, missing_reason, resource_rows, target_rows, traffic_rows
from simkit.report.units import multiple, rate, seconds, share, size

NO_TARGETS: Mapping[str, float] = {}


def summary_table(summary: Mapping[str, object], slo: Mapping[str, float] = NO_TARGETS) -> Table:
    """A summary as one table: regime and provenance, latency percentiles, targets, then everything counted.

    Text from outside is never read as markup. Missing parts are left out, unknown percentiles shown as a dash with
    their reason.
    """
    page = Table.grid(padding=(0, 0))
    page.add_row(_regime(summary))
    if at(summary, "step_time", "provenance") is not None:
        provenance = str(at(summary, "step_time", "provenance"))
        note = at(summary, "step_time", "note")
        said = f"step times: {provenance}" + (f" ({note})" if note else "")
        page.add_row(Text(said, style="yellow" if provenance == "uncalibrated" else ""))
    rows = latency_rows(summary)
    if rows:
        latency = _numbers("latency", STATISTICS)
        for name, values in rows:
            latency.add_row(Text(name), *map(Text, values))
        page.add_row(latency)
        reason = missing_reason(summary)
        if reason:
            page.add_row(Text(reason, style="dim"))
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column()
    facts.add_column(justify="right")
    for label, value in target_rows(summary, slo) + traffic_rows(summary) + resource_rows(summary):
        facts.add_row(Text(label), Text(value))
    page.add_row(facts)
    return page


def load_table(points: Sequence[LoadPoint], chosen: float | None = None) -> Table:
    """Replays by load, lowest first; the row whose load is `chosen` stands out."""
    table = _numbers("load", ("rate", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "E2E p99", "goodput", "queue"))
    for point in sorted(points, key=lambda point: point.load):
        times = (point.ttft_p50_s, point.ttft_p99_s, point.tpot_p50_s, point.tpot_p99_s, point.e2e_p99_s)
        table.add_row(
            multiple(point.load),
            rate(point.rate_per_s, "req"),
            *(seconds(None if point.saturated else value) for value in times),
            share(point.goodput_fraction),
            Text("grows", style="red") if point.saturated else Text("stable"),
            style="bold" if chosen is not None and point.load == chosen else None,
        )
    return table


def memory_table(rows: Sequence[tuple[str, int]], capacity_bytes: int | None = None) -> Table:
    """A breakdown of device memory, (name, bytes) a row, with each row's share of `capacity_bytes` or of their sum."""
    total = capacity_bytes or sum(held for _, held in rows)
    table = _numbers("memory a GPU", ("size", "share"))
    for name, held in rows:
        table.add_row(Text(name), size(held), share(held / total if total else None))
    return table


def _numbers(first: str, columns: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _regime(summary: Mapping[str, object]) -> Text:
    saturated = at(summary, "saturation", "saturated")
    reason = at(summary, "saturation", "reason")
    ending = f": {reason}" if reason else ""
    if saturated is True:
        return Text(f"overloaded, the queue keeps growing{ending}", style="bold red")
    if saturated is False:
        return Text(f"stable at this load{ending}", style="green")
    return Text("no saturation check in this summary", style="yellow")
