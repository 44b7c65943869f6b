"""A plan as one page: verdict, what was searched, how sure it is, what binds, what breaks it, the bill, commands."""

from collections.abc import Mapping, Sequence

import numpy as np
import yaml

from simkit.metrics.intervals import Interval
from simkit.metrics.slo import Promise
from simkit.plan.answer import COSTLIER
from simkit.plan.decision import Decision
from simkit.plan.observation import FIGURES, miss, named
from simkit.plan.one_replica import OneReplica
from simkit.plan.search import SearchResult, pareto
from simkit.report.figures.plan import MOST_PROMISES, Priced, front_figure, held_figure, interval_figure
from simkit.report.html import page
from simkit.report.markup import Cell, figures, plain, table, text
from simkit.report.palette import PART_NAME
from simkit.report.plan_tables import gained
from simkit.report.units import count, rate, seconds, share, size

Section = tuple[str, str, str]
MOST_ROWS = 300
RESOURCES_NOTE = (
    "Headroom is the share that is not in use; exponent, by how many percent the rate held rises for one percent more "
    "of the resource. What binds has the largest exponent, not always the least headroom: latencies bind first."
)


def plan_page(
    title: str,
    lines: Sequence[str],
    tree: Mapping[str, object],
    promise: Promise,
    decision: Decision | None,
    found: SearchResult | None,
    figure: str,
) -> str:
    """The page; `lines` is the verdict, `figure` the latency of the front. The same plan gives the same bytes."""
    tone = "bad" if decision is None else "good" if decision.sure.kept.value >= 0.5 else "unsure"
    said = "".join(f"<p>{text(line)}</p>" for line in lines[1:])
    top = f'<div class="banner {tone}" role="status"><p class="headline">{text(lines[0])}</p>{said}</div>'
    sections: list[Section] = []
    if decision is not None:
        note = f"{decision.provenance}, {decision.provenance_note}"
        top += f'<div class="banner unsure"><b>Step times:</b> {text(note)}.</div>'
        sections += _decision_sections(decision, promise)
    if found is not None:
        sections.insert(
            0,
            (
                "search",
                "Deployments searched",
                _search(found, figure, None if decision is None else decision.kind.number),
            ),
        )
    sections.append(("configuration", "Configuration", _configuration(tree)))
    return page(title, top, "" if decision is None else _numbers(decision), sections, tree)


def one_replica_page(
    title: str, lines: Sequence[str], tree: Mapping[str, object], promise: Promise, found: OneReplica
) -> str:
    """The page of the highest rate that one replica holds; `lines` begin with that rate."""
    said = "".join(f"<p>{text(line)}</p>" for line in lines[1:])
    top = f'<div class="banner good" role="status"><p class="headline">{text(lines[0])}</p>{said}</div>'
    sections = [
        ("sure", "How sure", _sure(found, promise)),
        ("why", "What binds, and what to change", _why(found)),
        ("bill", "Cost and energy", _bill(found)),
        ("where", "Where a request's time goes", _waterfalls(found)),
        ("configuration", "Configuration", _configuration(tree)),
    ]
    return page(title, top, "", sections, tree)


def _configuration(tree: Mapping[str, object]) -> str:
    written = yaml.safe_dump(plain(tree.get("config")), sort_keys=False, allow_unicode=True, width=100)
    return f"<pre>{text(written, 200_000)}</pre>"


def _decision_sections(d: Decision, promise: Promise) -> list[Section]:
    return [
        ("sure", "How sure", _sure(d, promise)),
        ("knee", "The knee, and what breaks it", _stresses(d)),
        ("why", "What binds, and what to change", _why(d)),
        ("bill", "Cost and energy", _bill(d)),
        ("where", "Where a request's time goes", _waterfalls(d)),
        ("launch", "Commands", _launch(d)),
    ]


def _numbers(d: Decision) -> str:
    seen, routed = d.planned, d.routed
    head = ("figure", "as planned", "95 % of its long-run value", "step times in doubt", "whole fleet, routed")
    rows: list[list[Cell | str]] = []
    for key in (*FIGURES, *(f"itl_{s}_s" for s in ("mean", "p50", "p90", "p99")), "attainment"):
        value = seen.figures[key]
        shown = share if key == "attainment" else seconds
        rows.append(
            [
                named(key).upper().replace("MEAN", "mean").replace(" P", " p"),
                Cell(shown(value), value),
                _between(d.sure.sampling[key], key == "attainment"),
                _between(d.sure.together[key], key == "attainment"),
                "—" if routed is None else shown(routed.figures[key]),
            ]
        )
    facts = [
        ("Requests replayed (one replica's share)", count(seen.requests)),
        ("Requests longer than the context", count(seen.rejected)),
        ("Device busy", share(seen.busy_fraction)),
        ("Requests in a step, mean", count(seen.running_mean)),
        ("KV blocks held, peak", share(seen.kv_peak)),
        ("Preemptions", count(seen.preemptions)),
        ("Prompt tokens found in the prefix cache", count(seen.hit_tokens)),
    ]
    memory = [(name, size(value)) for name, value in d.memory]
    columns = table("One replica", (), facts, "facts") + table("Memory of one GPU", (), memory, "facts")
    return table("Latencies", head, rows, "numbers") + f'<div class="columns">{columns}</div>'


def _between(interval: Interval, as_share: bool) -> str:
    shown = share if as_share else seconds
    if np.isnan(interval.low) or np.isnan(interval.high):
        return "not told: a queue grows"
    high = "no bound" if interval.high == float("inf") else shown(interval.high)
    low = "nothing" if interval.low == float("-inf") else shown(interval.low)
    return f"{low} to {high}"


def _search(found: SearchResult, figure: str, chosen: int | None) -> str:
    front = set(pareto(found.answers, figure))
    points = [
        Priced(kind.label, one.usd_per_hour or 0.0, value, kind.number in front, kind.number == chosen)
        for kind, one in zip(found.kinds, found.answers, strict=True)
        if one.holds and (value := one.figures.get(figure)) is not None
    ]
    drawn = front_figure(points, named(figure))
    order = sorted(found.answers, key=lambda one: (one.usd_per_hour is None, one.usd_per_hour or 0.0, one.number))
    rows = [_search_row(found, one.number, one.number in front, figure, chosen) for one in order[:MOST_ROWS]]
    head = ("kind", "ends", "replicas", "GPUs", "USD/h", named(figure), "tok/s a GPU", "front", "why")
    caption = (
        "Each dot is a kind of replica with the fewest replicas that hold; the line joins those that no other beats."
    )
    if any(one.status == COSTLIER for one in found.answers):
        caption += " Kinds that cost more were not answered and have no dot; --front answers all."
    shown = table("Kinds of replica, cheapest first", head, rows, "numbers wide", sortable=True)
    return (figures([drawn], caption) if drawn else "") + shown


def _search_row(found: SearchResult, number: int, on_front: bool, figure: str, best: int | None) -> list[Cell | str]:
    kind, one = found.kinds[number], found.answers[number]
    latency = one.figures.get(figure)
    gpus = None if one.replicas is None else one.replicas * kind.gpus
    chosen = " (chosen)" if number == best else ""
    return [
        kind.label + chosen,
        one.status,
        Cell(count(one.replicas), one.replicas),
        Cell(count(gpus), gpus),
        Cell("—" if one.usd_per_hour is None else f"{one.usd_per_hour:,.2f}", one.usd_per_hour),
        Cell(seconds(latency), latency),
        Cell(count(one.tokens_per_s_per_gpu), one.tokens_per_s_per_gpu),
        "yes" if on_front else "",
        one.reason[:200],
    ]


def _sure(d: Decision | OneReplica, promise: Promise) -> str:
    names, low, value, high = [], [], [], []
    for target in promise.targets:
        interval = d.sure.together[target.key]
        if np.isfinite(interval.low):
            names.append(target.label)
            low.append(interval.low / target.limit_s)
            value.append(interval.value / target.limit_s)
            high.append(interval.high / target.limit_s)
    drawn = ""
    if names:
        arrays = (np.array(low), np.minimum(np.array(value), 1e9), np.minimum(np.array(high), 1e9))
        svg = interval_figure("Targets with their intervals", names, *arrays, "plan-sure")
        caption = "Bars: the middle 95 % over other days' traffic and other step times; dots: the median."
        if any(end > MOST_PROMISES for end in high):
            caption += " An arrow is an end that is not drawn, or that has no bound because the queue may grow."
        drawn = figures([svg], caption)
    rows = [
        (
            "Promise kept, step times in doubt",
            f"{d.sure.kept.value:.2f} ({d.sure.kept.low:.2f} to {d.sure.kept.high:.2f})",
        ),
        ("Promise kept, step times exact", f"{d.sure.kept_as_assumed.value:.2f}"),
        ("Spread of the step times", f"{share(d.sure.error.spread)}, {d.sure.error.source}"),
        ("Replications", count(d.sure.replications)),
        ("of these with a growing queue", share(d.sure.grows)),
    ]
    known = [] if d.known is None else [(f"Step time {name}", share(part)) for name, part in d.known.items()]
    return drawn + table("Probabilities", (), rows + known, "facts")


def _stresses(d: Decision) -> str:
    names = ["as planned", *(f"steps × {factor:g}" for factor in d.knee_by_factor)]
    held = [d.knee.rate_per_s or 0.0, *(rate or 0.0 for rate in d.knee_by_factor.values())]
    names += [stress.scenario.words for stress in d.stresses]
    held += [stress.held_per_s or 0.0 for stress in d.stresses]
    svg = held_figure("Rate held", names, held, d.rate_per_s)
    probes: list[list[Cell | str]] = [
        [
            Cell(rate(r, "req"), r),
            "holds" if one.holds else "; ".join(map(miss, one.missed)),
            *(
                seconds(None if one.saturated else one.figures[key])
                for key in ("ttft_p99_s", "tpot_p99_s", "e2e_p99_s")
            ),
        ]
        for r, one in d.knee.seen
    ]
    head = ("rate of the fleet", "outcome", "TTFT p99", "TPOT p99", "E2E p99")
    caption = "Highest rate at which the promise is kept, by scenario; below the line it breaks."
    return figures([svg], caption) + table("Rates tried for the knee", head, probes, "numbers")


def _why(d: Decision | OneReplica) -> str:
    rows = [
        [
            one.name,
            share(one.used),
            share(one.headroom),
            "—" if one.exponent is None else f"{one.exponent:.2f}",
            gained(one),
        ]
        for one in d.resources
    ]
    head = ("resource", "in use", "headroom", "exponent", "rate held with 10 % more of it")
    bound = table("Resources of a replica, the one that binds first", head, rows, "numbers")
    bound += f'<p class="note">{text(RESOURCES_NOTE)}</p>'
    changed = [
        [
            change.words,
            rate(change.held_per_s, "req"),
            f"{change.usd_per_hour:,.2f}",
            f"{change.usd_per_million_requests:,.2f}",
        ]
        for change in d.changes
    ]
    headings = ("one change", "rate held", "USD/h", "USD a million requests at that rate")
    return bound + table("Single changes, as many replicas", headings, changed, "numbers")


def _bill(d: Decision | OneReplica) -> str:
    bill = d.bill
    money = [(name, f"{usd:,.3f}") for name, usd in bill.usd_per_hour.items()]
    money.append(("total", f"{bill.total_usd_per_hour:,.3f}"))
    power = [(name, f"{watts:,.0f}") for name, watts in bill.watts.items()]
    power.append(("total", f"{bill.total_watts:,.0f}"))
    unit = [
        ("USD a month", f"{bill.usd_per_month:,.0f}"),
        ("USD a thousand requests", f"{1000 * bill.usd_per_request:.3g}"),
        ("USD a million input tokens", f"{bill.usd_per_million_input:.3g}"),
        ("USD a million output tokens", f"{bill.usd_per_million_output:.3g}"),
        ("J a token", f"{bill.joules_per_token:.3g}"),
        ("J an output token", f"{bill.joules_per_output_token:.3g}"),
        ("g CO2 a request", f"{bill.carbon_g_per_request:.3g}"),
        ("kg CO2 an hour", f"{bill.carbon_kg_per_hour:.3g}"),
    ]
    tables = table("USD/h", (), money, "facts") + table("W", (), power, "facts") + table("A unit", (), unit, "facts")
    return f'<div class="columns">{tables}</div>'


def _waterfalls(d: Decision | OneReplica) -> str:
    parts = list(d.waterfalls[0].parts_s) if d.waterfalls else []
    rows = [
        [
            f"E2E p{one.percentile}",
            seconds(one.e2e_s),
            *(seconds(one.parts_s[part]) for part in parts),
            count(one.requests),
        ]
        for one in d.waterfalls
    ]
    head = ("around", "E2E", *(PART_NAME[part] for part in parts), "requests")
    return table("Mean of the requests around a percentile", head, rows, "numbers")


def _launch(d: Decision) -> str:
    parts = (("vLLM", d.launch.vllm), ("SGLang", d.launch.sglang), ("Load test", d.launch.load_test))
    shown = "".join(f"<h3>{name}</h3><pre>{text(command, 20_000)}</pre>" for name, command in parts)
    notes = "".join(f'<p class="note">{text(note)}.</p>' for note in d.launch.notes)
    return f"{shown}<h3>Kubernetes</h3><pre>{text(d.launch.kubernetes, 20_000)}</pre>{notes}"
