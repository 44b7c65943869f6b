"""A plan's tables on a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from simkit.plan.decision import Decision
from simkit.plan.observation import miss
from simkit.plan.resources import LEAST_GAIN, Resource
from simkit.plan.search import SearchResult
from simkit.report.units import count, rate, seconds, share

SHOWN = 12  # kinds: those that hold, cheapest first


def search_table(found: SearchResult, figure: str, chosen: tuple[int, int] | None) -> Table:
    """The cheapest kinds that hold; where none does, those that come first and why they do not.

    `chosen` is the number of a kind and its replicas, which are more than hold once where the plan must be sure.
    """
    table = _table(("replica", "replicas", "GPUs", "USD/h", figure.removesuffix("_s").replace("_", " "), "ends"))
    held = [one for one in found.answers if one.holds]
    order = sorted(held, key=lambda one: (one.usd_per_hour or 0.0, one.number)) or list(found.answers)
    for one in order[:SHOWN]:
        kind = found.kinds[one.number]
        gpus = None if one.replicas is None else one.replicas * kind.gpus
        usd = "—" if one.usd_per_hour is None else f"{one.usd_per_hour:,.2f}"
        best = chosen is not None and one.number == chosen[0]
        ends = one.status if one.holds else f"{one.status}: {one.reason}"
        if best and chosen is not None:
            ends = "chosen" if one.replicas == chosen[1] else f"chosen, {chosen[1]} to be sure"
        row = (kind.label, count(one.replicas), count(gpus), usd, seconds(one.figures.get(figure)), ends[:200])
        table.add_row(*(Text(cell) for cell in row), style="bold" if best else "")
    return table


def decision_tables(d: Decision) -> Sequence[Table]:
    """Latencies with their intervals; resources; scenarios."""
    latencies = _table(("of one request", "mean", "p50", "p90", "p99", "p99 with step times in doubt"))
    for metric in ("ttft", "tpot", "itl", "ntpot", "e2e"):
        values = [seconds(d.planned.figures[f"{metric}_{s}_s"]) for s in ("mean", "p50", "p90", "p99")]
        together = d.sure.together[f"{metric}_p99_s"]
        high = "no bound" if together.high == float("inf") else seconds(together.high)
        latencies.add_row(metric.upper(), *values, f"{seconds(together.low)} to {high}")
    resources = _table(("resource", "in use", "rate held with 10 % more"))
    for one in d.resources:
        resources.add_row(one.name, share(one.used), gained(one))
    stresses = _table(("scenario", "rate held", "asked", ""))
    for stress in d.stresses:
        ends = "holds" if stress.holds else f"breaks: {', '.join(map(miss, stress.missed))}"
        stresses.add_row(stress.scenario.words, rate(stress.held_per_s, "req"), rate(d.rate_per_s, "req"), ends)
    return latencies, resources, stresses


def gained(one: Resource) -> str:
    """By how much more of a resource raises the rate; what the search cannot tell from nothing is not told."""
    if one.gain is None:
        return "—"
    return f"{100 * one.gain:+.1f} %" if one.gain >= LEAST_GAIN else "< 1 %"


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 or not name or name == "ends" else "right")
    return table
