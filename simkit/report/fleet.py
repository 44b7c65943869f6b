"""The report's section on a fleet: where the requests went, what it cost, replica by replica."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from simkit.report.data import ReportData, at, number_at, section
from simkit.report.figures.fleet_size import fleet_size
from simkit.report.markup import Cell, figures, table
from simkit.report.units import count, seconds, share, size

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
TIER_HEAD = ("tier", "prompt tokens read", "read", "written", "evicted", "held at the end", "reading", "writing")
POOL_HEAD = ("pool", "replicas", "model", "device", "GPUs each", "KV tokens each", "step times")
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
    facts += _links(fleet)
    columns = table("Accounts", (), accounts, "facts") + table("Fleet", (), facts, "facts")
    listed = at(fleet, "replicas")
    rows = [_row(row) for row in listed] if isinstance(listed, list) else []
    lives = _whole(fleet, "lives")
    title = "Replicas, a row from each start to its end"
    title += f" (the first {len(rows)} of {lives})" if lives > len(rows) else ""
    parts = [
        f'<div class="columns">{columns}</div>',
        _over_time(data),
        _pools(at(fleet, "pools")),
        _tiers(at(fleet, "tiers")),
    ]
    return "".join(parts) + table(title, HEAD, rows, "numbers wide", sortable=True)


def _links(fleet: object) -> list[tuple[str, str]]:
    """What the links between prefill and decode had to do."""
    if at(fleet, "handover") is None:
        return []
    links, busy_s = _whole(fleet, "handover", "links"), _whole(fleet, "handover", "link_busy_ns") / 1e9
    return [
        ("KV moved from prefill to decode", size(_whole(fleet, "handover", "bytes_moved"))),
        ("KV not moved, as an end, the link or the client was lost", size(_whole(fleet, "handover", "bytes_given_up"))),
        (f"Time in which {count(links)} links were busy, summed", seconds(busy_s)),
    ]


def _over_time(data: ReportData) -> str:
    """The figure of a fleet whose size changes."""
    lists = [at(data.summary, "fleet", "replicas_over_time", name) for name in ("at_s", "serving", "paid_for")]
    at_s, serving, paid_for = ([float(value) for value in given] if isinstance(given, list) else [] for given in lists)
    if not at_s:
        return ""
    drawn = fleet_size(at_s, serving, paid_for, data.result.end_ns / 1e9)
    return figures([drawn], "Paid for are also replicas that start and that are held warm; serving, those that drain.")


def _pools(pools: object) -> str:
    """A row a pool, where there is more than one."""
    if not isinstance(pools, list) or len(pools) < 2:
        return ""
    rows: list[list[Cell | str]] = []
    for pool in pools:
        said = [str(at(pool, name)) for name in ("pool", "replicas", "model", "device")]
        held = [count(_whole(pool, name)) for name in ("gpus", "kv_tokens")]
        rows.append([*said, *held, str(at(pool, "step_time", "provenance"))])
    return table("Pools", POOL_HEAD, rows, "numbers wide")


def _tiers(tiers: object) -> str:
    """A row a tier behind the device caches: what it saved from being computed, and what that moved."""
    if not isinstance(tiers, list) or not tiers:
        return ""
    rows: list[list[Cell | str]] = []
    for tier in tiers:
        moved = [size(_whole(tier, f"{name}_bytes")) for name in ("read", "written", "evicted", "held")]
        busy = [seconds(_whole(tier, f"{name}_busy_ns") / 1e9) for name in ("read", "write")]
        rows.append([str(at(tier, "name")), count(_whole(tier, "hit_tokens")), *moved, *busy])
    note = "Prompt tokens read are in the prefix cache's hits of the whole run, and not in those of the replicas below."
    return table("KV tiers", TIER_HEAD, rows, "numbers wide") + f'<p class="note">{note}</p>'


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
    for label, said in _links(fleet):
        rows.add_row(Text(label), Text(said))
    tiers = at(fleet, "tiers")
    for tier in tiers if isinstance(tiers, list) else []:
        read = f"{count(_whole(tier, 'hit_tokens'))} ({size(_whole(tier, 'read_bytes'))})"
        rows.add_row(Text(f"prompt tokens read from tier {at(tier, 'name')}"), Text(read))
    rows.add_row(Text("replicas serving, mean"), Text(f"{number_at(fleet, 'replicas_mean') or 0.0:.3g}"))
    rows.add_row(Text("GPU-hours"), Text(f"{number_at(fleet, 'gpu_hours') or 0.0:.4g}"))
    return rows
