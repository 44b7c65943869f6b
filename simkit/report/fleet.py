"""The report's section on a fleet: where the requests went, what it cost, replica by replica."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from simkit.report.data import ReportData, at, number_at, section
from simkit.report.markup import Cell, table
from simkit.report.units import count, seconds, share

ACCOUNTS = {
    "arrived": "Requests that arrived",
    "finished": "finished",
    "rejected": "rejected (429, or too long)",
    "timed_out": "timed out or broken off",
    "failed": "failed with their replica",
    "in_flight": "in flight at the end",
    "never_asked": "Requests never asked, as their session stopped",
    "attempts": "Attempts that the fleet saw",
    "retries": "of these, retries of clients",
    "resent": "of these, sent on by the gateway",
}
MOVED = {
    "handed_over": "handed over from prefill to decode",
    "local": "prefilled where they decode",
    "taken_up": "KV sent again to another decode replica",
}
HEAD = ("replica", "pool", "GPUs", "ready", "ended", "requests", "finished", "busy", "prefix hits", "TTFT p50")


def fleet_section(data: ReportData) -> str:
    """Accounts and one row a life."""
    fleet = section(data.summary, "fleet")
    accounts = [(label, count(_whole(fleet, "accounts", key))) for key, label in ACCOUNTS.items()]
    facts = [
        ("Router", str(at(fleet, "router"))),
        ("GPU-hours", f"{number_at(fleet, 'gpu_hours') or 0.0:.3g}"),
        ("Replicas serving, mean", f"{number_at(fleet, 'replicas_mean') or 0.0:.3g}"),
        ("Time outside the replicas, mean", seconds(number_at(fleet, "outside_s", "mean"))),
        ("Most requests of a replica over the mean", f"{number_at(fleet, 'most_over_mean_requests') or 0.0:.3g}"),
    ]
    facts += [(label, count(number)) for key, label in MOVED.items() if (number := _whole(fleet, "handover", key))]
    columns = table("Accounts", (), accounts, "facts") + table("Fleet", (), facts, "facts")
    listed = at(fleet, "replicas")
    rows = [_row(row) for row in listed] if isinstance(listed, list) else []
    lives = _whole(fleet, "lives")
    title = "Replicas, a row from each start to its end"
    title += f" (the first {len(rows)} of {lives})" if lives > len(rows) else ""
    return f'<div class="columns">{columns}</div>' + table(title, HEAD, rows, "numbers wide", sortable=True)


def _whole(tree: object, *path: str) -> int:
    return int(number_at(tree, *path) or 0)


def _row(row: object) -> list[Cell | str]:
    busy, hits, ttft = (number_at(row, name) for name in ("busy_fraction", "hit_rate", "ttft_s"))
    cells: list[Cell | str] = [count(_whole(row, "replica")), str(at(row, "pool")), count(_whole(row, "gpus"))]
    cells += [Cell(seconds(value), value or 0.0) for value in (number_at(row, "ready_s"), number_at(row, "ended_s"))]
    cells += [Cell(count(_whole(row, name)), _whole(row, name)) for name in ("requests", "finished")]
    return [*cells, Cell(share(busy), busy or 0.0), Cell(share(hits), hits or 0.0), Cell(seconds(ttft), ttft or 0.0)]


def fleet_table(summary: Mapping[str, object]) -> Table:
    """The accounts and the bill on a terminal."""
    fleet = section(summary, "fleet")
    rows = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows.add_column()
    rows.add_column(justify="right")
    rows.add_row(Text("router"), Text(str(at(fleet, "router"))))
    for key, label in ACCOUNTS.items():
        number = _whole(fleet, "accounts", key)
        if number or key in ("arrived", "finished"):
            rows.add_row(Text(label), Text(count(number)))
    for key, label in MOVED.items():
        if number := _whole(fleet, "handover", key):
            rows.add_row(Text(label), Text(count(number)))
    rows.add_row(Text("replicas serving, mean"), Text(f"{number_at(fleet, 'replicas_mean') or 0.0:.3g}"))
    rows.add_row(Text("GPU-hours"), Text(f"{number_at(fleet, 'gpu_hours') or 0.0:.4g}"))
    return rows
