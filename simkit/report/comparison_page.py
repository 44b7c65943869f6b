"""Deployments side by side: in words, as tables on a terminal, and as one page."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import yaml
from rich.table import Table
from rich.text import Text

from simkit.metrics.intervals import Interval
from simkit.plan.paired import Comparison, Difference
from simkit.report.html import page
from simkit.report.markup import plain, table, text
from simkit.report.units import seconds, share

SHOWN = tuple(f"{m}_{s}_s" for m in ("ttft", "tpot", "itl", "ntpot", "e2e") for s in ("mean", "p50", "p90", "p99"))


def paired_words(found: Comparison) -> list[str]:
    """One or two lines a contender; before them who did not serve all of its requests."""
    lines = list(_unserved_words(found))
    for d in found.differences:
        if d.same:
            lines.append(f"{d.name} and {d.against} are the same: every difference is exactly 0.")
            continue
        chance = f"{d.cheaper.value:.2f} ({d.cheaper.low:.2f} to {d.cheaper.high:.2f})"
        lines.append(f"{d.name} is cheaper a request than {d.against} with probability {chance}.")
        sure = [key for key in SHOWN if _tells(d.figures[key]) and key.endswith(("mean_s", "p99_s"))]
        better = [_name(key) for key in sure if d.figures[key].value < 0]
        worse = [_name(key) for key in sure if d.figures[key].value > 0]
        if better:
            lines.append(f"  {d.name} is faster in {', '.join(better)}.")
        if worse:
            lines.append(f"  {d.name} is slower in {', '.join(worse)}.")
        if not sure:
            lines.append(f"  No latency differs for sure over {found.replications} replications.")
    return lines


def _unserved_words(found: Comparison) -> Iterator[str]:
    for name, away, left in zip(found.names, found.turned_away, found.not_finished, strict=True):
        parts = [f"turns {share(away)} of its requests away"] if away else []
        parts += [f"does not finish {share(left)}"] if left else []
        if parts:
            yield (
                f"Warning: {name} {' and '.join(parts)}; its latencies are of the others alone, "
                "and look better than if it had served all."
            )


def _tells(interval: Interval) -> bool:
    """Whether 0 lies outside."""
    return interval.low > 0 or interval.high < 0


def _name(key: str) -> str:
    metric, statistic, _ = key.split("_")
    return f"{metric.upper()} {statistic}"


def _signed(interval: Interval) -> str:
    if np.isnan(interval.value):
        return "not told: a queue grows"
    if interval.low == interval.high == 0:
        return "0"
    return f"{_plus(interval.value)} ± {seconds(interval.high - interval.value)}"


def _plus(value_s: float) -> str:
    return ("+" if value_s > 0 else "") + seconds(value_s)


def _rows(found: Comparison) -> list[list[str]]:
    rows = []
    for key in SHOWN:
        values = [seconds(figures[key].value) for figures in found.figures]
        rows.append([_name(key), *values, *(_signed(d.figures[key]) for d in found.differences)])
    met = [share(figures["attainment"].value) for figures in found.figures]
    gaps = [_percent(d.figures["attainment"]) for d in found.differences]
    rows.append(["requests within all limits", *met, *gaps])
    for name, shares in (("requests turned away", found.turned_away), ("requests not finished", found.not_finished)):
        if any(shares):
            rows.append([name, *map(share, shares), *(_points(one - shares[0]) for one in shares[1:])])
    rows.append(
        ["USD/h", *(f"{usd:.2f}" for usd in found.usd_per_hour), *(_usd(d.usd_per_hour) for d in found.differences)]
    )
    rows.append(
        [
            "USD a million requests, at the knee",
            *(f"{usd:.2f}" for usd in found.usd_per_million_requests),
            *(_price(d) for d in found.differences),
        ]
    )
    return rows


def _percent(interval: Interval) -> str:
    if np.isnan(interval.value):
        return "not told"
    if interval.low == interval.high == 0:
        return "0"
    return f"{100 * interval.value:+.2f} ± {100 * (interval.high - interval.value):.2f} %"


def _points(gap: float) -> str:
    return "0" if gap == 0 else f"{100 * gap:+.2f} %"


def _usd(usd: float) -> str:
    return "0" if usd == 0 else f"{usd:+.2f}"


def _price(d: Difference) -> str:
    gap = d.usd_per_million_requests
    if np.isnan(gap.value):
        return "not told: in some replication nothing holds"
    return "0" if gap.low == gap.high == 0 else f"{gap.value:+.2f} ± {gap.high - gap.value:.2f}"


def _head(found: Comparison) -> list[str]:
    return ["", *found.names, *(f"{d.name} - {d.against}" for d in found.differences)]


def paired_tables(found: Comparison) -> Sequence[Table]:
    """For a terminal."""
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(_head(found)):
        shown.add_column(name, justify="left" if i == 0 else "right")
    for row in _rows(found):
        shown.add_row(*map(Text, row))
    return [shown]


def paired_page(found: Comparison, lines: Sequence[str], tree: Mapping[str, object]) -> str:
    """The page; the same comparison gives the same bytes."""
    said = "".join(f"<p>{text(line)}</p>" for line in lines[1:])
    top = f'<div class="banner unsure" role="status"><p class="headline">{text(lines[0])}</p>{said}</div>'
    note = (
        f"{found.replications} replications, each with one traffic for all. Figures are means over them, and of a "
        "recorded trace its own; differences with the 95 % interval of their long-run value. Prices at the knee have "
        "the step times in doubt: of their differences it is the interval in which one more replication would be found."
    )
    numbers = table("Figures and differences", _head(found), _rows(found), "numbers") + f"<p>{text(note)}</p>"
    written = yaml.safe_dump(plain(tree.get("configs")), sort_keys=False, allow_unicode=True, width=100)
    sections = [("configuration", "Configurations", f"<pre>{text(written, 200_000)}</pre>")]
    return page("Comparison: " + ", ".join(found.names), top, numbers, sections, tree)
