"""The decision in words: at most fifteen lines that somebody who has never heard of a KV cache can act on."""

from collections.abc import Mapping, Sequence

from simkit.metrics.intervals import Interval
from simkit.metrics.slo import Promise
from simkit.plan.changes import NONE, Change, Infeasible, next_change
from simkit.plan.cost import Ledger
from simkit.plan.decision import Decision
from simkit.plan.one_replica import OneReplica
from simkit.plan.resources import Resource
from simkit.plan.search import SearchResult
from simkit.plan.settings import PlanSettings

MOST_LINES = 15


def verdict(decision: Decision, found: SearchResult | None, promise: Promise, settings: PlanSettings) -> list[str]:
    """The answer, its price, how sure it is, what would break it and what to do next."""
    d = decision
    gpus = d.replicas * d.kind.gpus
    lines = [
        f"Deploy {_count(d.replicas, d.kind.noun)} of {d.kind.label}: {_count(gpus, 'GPU')} for {d.rate_per_s:.4g} "
        "requests/s.",
        *cost(d.bill),
        _sure(d),
        *(_target(key, limit, d) for key, limit in _promised(promise).items()),
        _routed(d),
        _knee(d),
        binds(d.resources),
        _robust(d),
    ]
    users = settings.demand.users_at(d.knee.rate_per_s) if d.knee.rate_per_s is not None else None
    if users is not None:
        lines.append(
            f"It holds {users:,} users; {settings.demand.users.count:,} were asked." if settings.demand.users else ""
        )
    lines += [_growth(d, settings), next_try(d.changes), provenance(d.provenance, d.known), _searched(found)]
    return [line for line in lines if line][:MOST_LINES]


def cost(bill: Ledger) -> tuple[str, str]:
    """Money and energy."""
    return (
        f"Cost: {bill.total_usd_per_hour:,.2f} USD/h, {bill.usd_per_month:,.0f} USD a month; "
        f"{bill.usd_per_million_input:.3g} USD a million input tokens, {bill.usd_per_million_output:.3g} output.",
        f"Energy: {bill.total_watts / 1000:.2f} kW, {bill.joules_per_token:.2g} J a token, "
        f"{bill.carbon_kg_per_hour:.2g} kg CO2 an hour.",
    )


def one_replica(found: OneReplica) -> list[str]:
    """What stands beside the highest rate that one replica holds."""
    sure = found.sure
    room = ", ".join(f"{kept.value:.2f} at {100 * share:.0f} % of it" for share, kept in found.kept_below.items())
    return [
        f"Promise kept at this rate with probability {sure.kept.value:.2f} ({_range(sure.kept)}) with step times in "
        f"doubt by {100 * sure.error.spread:.0f} %, {sure.kept_as_assumed.value:.2f} if they are exact; {room}.",
        *cost(found.bill),
        binds(found.resources),
        next_try(found.changes),
    ]


def _promised(promise: Promise) -> dict[str, float]:
    found = {target.key: target.limit_s for target in promise.targets}
    if promise.attainment is not None:
        found["attainment"] = promise.attainment
    if promise.goodput_per_s is not None:
        found["goodput_per_s"] = promise.goodput_per_s
    return dict(list(found.items())[:4])


def _sure(d: Decision) -> str:
    kept, plain, more = d.sure.kept, d.sure.kept_as_assumed, d.kept_with_one_more
    return (
        f"Promise kept with probability {kept.value:.2f} ({kept.low:.2f} to {kept.high:.2f}) with step times in doubt "
        f"by {100 * d.sure.error.spread:.0f} %; {plain.value:.2f} if they are exact; {more.value:.2f} with one "
        f"{d.kind.noun} more."
    )


def _target(key: str, limit: float, d: Decision) -> str:
    name = key.removesuffix("_s").replace("_", " ")
    value = d.planned.figures[key]
    if key == "attainment":
        return (
            f"{name}: {100 * value:.1f} % of requests ({_range(d.interval(key), 100)} %), {100 * limit:g} % promised."
        )
    if key == "goodput_per_s":
        return f"goodput: {value:.3g} requests/s ({_range(d.interval(key))}), {limit:g} promised."
    return f"{name}: {value:.3g} s ({_range(d.interval(key))} s), {limit:g} s promised."


def _range(interval: Interval, scale: float = 1.0) -> str:
    if interval.high == float("inf"):
        return f"{interval.low * scale:.3g} to no bound, the queue may grow"
    if interval.low == float("-inf"):
        return f"from nothing, the queue may grow, to {interval.high * scale:.3g}"
    return f"{interval.low * scale:.3g} to {interval.high * scale:.3g}"


def _routed(d: Decision) -> str:
    """Only where the whole fleet tells otherwise than one replica's share."""
    if d.routed is None or d.routed.holds:
        return ""
    missed = ", ".join(
        f"{key.removesuffix('_s').replace('_', ' ')} {d.routed.figures[key]:.3g}" if key in d.routed.figures else key
        for key in d.routed.missed
    )
    door = d.door if d.kind.apart is None else "one gateway"
    return (
        f"All {d.replicas} {d.kind.noun}s together behind {door} miss: {missed}. It stands at the edge; take one more."
    )


def _knee(d: Decision) -> str:
    if d.knee.rate_per_s is None or d.load is None:
        return "Where the knee is could not be found: no rate that was tried holds."
    slow, fast = d.knee_by_factor[max(d.knee_by_factor)], d.knee_by_factor[min(d.knee_by_factor)]
    return (
        f"Knee: {d.knee.rate_per_s:.4g} requests/s, so it runs at {100 * d.load:.0f} % of it; above, {d.knee.binding} "
        f"fails. With steps 10 % longer {_rate(slow)}, 10 % shorter {_rate(fast)}."
    )


def _rate(rate: float | None) -> str:
    return "no rate holds" if rate is None else f"{rate:.4g}"


def binds(resources: Sequence[Resource]) -> str:
    """The resource of which more would hold most, and what is left of each."""
    if not resources:
        return ""
    first = resources[0]
    room = ", ".join(f"{r.name} {100 * r.headroom:.0f} %" for r in resources if r.headroom is not None)
    gain = (
        f" (10 % more of it holds {1.1**first.exponent * 100 - 100:.1f} % more)" if first.exponent is not None else ""
    )
    return f"{first.name} binds{gain}; headroom: {room}."


def _robust(d: Decision) -> str:
    stands = [stress.scenario.words for stress in d.stresses if stress.holds]
    fails = [stress.scenario.words for stress in d.stresses if not stress.holds]
    said = f"It stands {', '.join(stands)}" if stands else "It stands none of the scenarios"
    return said + (f"; not {', '.join(fails)}." if fails else ".")


def _growth(d: Decision, settings: PlanSettings) -> str:
    if settings.demand.growth is None:
        return ""
    if d.runs_out is None:
        return "With this growth it lasts ten years or more."
    months, when = d.runs_out
    return f"With this growth it runs out in {when:%B %Y}, after {_count(months, 'month')}."


def next_try(changes: Sequence[Change]) -> str:
    """The single change to try next."""
    best = next_change(changes)
    if best is None:
        return "No single change serves a request for markedly less."
    now = next(change for change in changes if change.words == "as planned")
    saved = 1 - best.usd_per_million_requests / now.usd_per_million_requests
    return f"Next change to try: {best.words}, {best.held_per_s:.4g} requests/s, {100 * saved:.0f} % less a request."


def provenance(label: str, known: Mapping[str, float] | None) -> str:
    """Where the step times come from, and how much of them was never measured."""
    return f"Step times: {label}{'' if known is None else _outside(known)}."


def _outside(known: Mapping[str, float]) -> str:
    beyond = known.get("extrapolated", 0.0) + known.get("assumed", 0.0)
    return f"; {100 * beyond:.0f} % of the step time lies outside of what was measured"


def _searched(found: SearchResult | None) -> str:
    if found is None:
        return ""
    counts = ", ".join(f"{number} {status}" for status, number in sorted(found.counts().items()))
    return f"Searched {len(found.kinds)} kinds of replica: {counts}."


def no_way(why: Infeasible) -> list[str]:
    """What binds, by how much, and the ways out."""
    gap = (
        f"{why.binding.removesuffix('_s')} is {why.measured:.4g}, {why.limit:g} was promised"
        if why.measured is not None and why.limit is not None
        else f"{why.binding}: the queue grows"
        if why.binding == "saturated"
        else why.binding
    )
    if why.closest == NONE:
        return [f"{why.binding}.", *(f"What would: {way}." for way in why.nearest)]
    lines = [f"Nothing that was allowed holds. Closest: {why.closest}; {gap}."]
    lines += [f"What would: {way}." for way in why.nearest]
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
