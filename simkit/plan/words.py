"""The decision in words: at most fifteen lines that somebody who has never heard of a KV cache can act on."""

import math
from collections.abc import Iterator, Mapping, Sequence

from simkit.metrics.intervals import Interval
from simkit.metrics.slo import GOODPUT, Promise
from simkit.plan.answer import CANNOT, COSTLIER, HOLDS, NEVER_HOLDS, TOO_SLOW
from simkit.plan.changes import NONE, Change, Infeasible, next_change
from simkit.plan.cost import Ledger
from simkit.plan.decision import Decision
from simkit.plan.observation import miss, named
from simkit.plan.one_replica import OneReplica
from simkit.plan.resources import LEAST_GAIN, Resource
from simkit.plan.search import SearchResult
from simkit.plan.settings import PlanSettings

MOST_LINES = 15
MOST_TARGETS = 4  # lines on what was promised


def verdict(decision: Decision, found: SearchResult | None, promise: Promise, settings: PlanSettings) -> list[str]:
    """The answer, its price, how sure it is, what would break it and what to do next."""
    d = decision
    gpus = d.replicas * d.kind.gpus
    lines = [
        f"Deploy {_count(d.replicas, d.kind.noun)} of {d.kind.label}: {_count(gpus, 'GPU')} for {d.rate_per_s:.4g} "
        "requests/s.",
        *cost(d.bill),
        _sure(d),
        *_targets(promise, d),
        _routed(d, promise),
        _knee(d),
        binds(d.resources),
        _robust(d),
        _lasts(d, settings),
        next_try(d.changes),
        f"{provenance(d.provenance, d.known)} {_searched(found)}".rstrip(),
    ]
    said = [line for line in lines if line]
    assert len(said) <= MOST_LINES, "each kind of line comes once, and of targets at most four"
    return said


def cost(bill: Ledger) -> tuple[str, str]:
    """Money and energy."""
    return (
        f"Cost: {bill.total_usd_per_hour:,.2f} USD/h, {bill.usd_per_month:,.0f} USD a month; "
        f"{bill.usd_per_million_input:.3g} USD a million input tokens, {bill.usd_per_million_output:.3g} output.",
        f"Energy, by assumed power draws: {bill.total_watts / 1000:.2f} kW, {bill.joules_per_token:.2g} J a token, "
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
    return found


def _targets(promise: Promise, d: Decision) -> Iterator[str]:
    """A line for each figure promised; of many those with least room, and how many are not told."""
    promised = _promised(promise)
    kept = list(promised)
    if len(kept) > MOST_TARGETS:

        def used(key: str) -> float:
            value, limit = d.planned.figures[key], promised[key]
            found = value / limit if key.endswith("_s") and key != GOODPUT else limit / value if value > 0 else math.inf
            return 0.0 if math.isnan(found) else found

        tightest = sorted(kept, key=used, reverse=True)[: MOST_TARGETS - 1]
        kept = [key for key in kept if key in tightest]
    for key in kept:
        yield _target(key, promised[key], d)
    if len(kept) < len(promised):
        yield f"{len(promised) - len(kept)} more figures are promised and kept, with more room than these."


def _sure(d: Decision) -> str:
    kept, plain, more = d.sure.kept, d.sure.kept_as_assumed, d.kept_with_one_more
    return (
        f"Promise kept with probability {kept.value:.2f} ({kept.low:.2f} to {kept.high:.2f}) with step times in doubt "
        f"by {100 * d.sure.error.spread:.0f} %; {plain.value:.2f} if they are exact; {more.value:.2f} with one "
        f"{d.kind.noun} more."
    )


def _target(key: str, limit: float, d: Decision) -> str:
    value = d.planned.figures[key]
    if key == "attainment":
        return (
            f"{key}: {beside(100 * value, 100 * limit)} % of requests ({_range(d.interval(key), ' %', 100)}), "
            f"{100 * limit:g} % promised."
        )
    if key == GOODPUT:
        return f"goodput: {beside(value, limit)} requests/s ({_range(d.interval(key))}), {limit:g} promised."
    return f"{named(key)}: {beside(value, limit)} s ({_range(d.interval(key), ' s')}), {limit:g} s promised."


def beside(value: float, limit: float) -> str:
    """A figure in three digits, or in as many more as leave it on its own side of the limit."""
    said = f"{value:.3g}"
    for digits in range(4, 17):
        told = float(said)
        if (told > limit, told < limit) == (value > limit, value < limit):
            break
        said = f"{value:.{digits}g}"
    return said


def _range(interval: Interval, unit: str = "", scale: float = 1.0) -> str:
    if interval.high == float("inf"):
        return f"{interval.low * scale:.3g}{unit} to no bound, as the queue may grow"
    if interval.low == float("-inf"):
        return f"nothing, as the queue may grow, to {interval.high * scale:.3g}{unit}"
    return f"{interval.low * scale:.3g} to {interval.high * scale:.3g}{unit}"


def _routed(d: Decision, promise: Promise) -> str:
    """Only where the whole fleet tells otherwise than one replica's share."""
    if d.routed is None or d.routed.holds:
        return ""
    limits, figures = _promised(promise), d.routed.figures

    def told(key: str) -> str:
        if key not in limits:
            return miss(key)
        unit = " s" if key.endswith("_s") and key != GOODPUT else ""
        return f"{named(key)} {beside(figures[key], limits[key])}{unit}, not {limits[key]:g}{unit}"

    door = d.door if d.kind.apart is None else "one gateway"
    missed = "; ".join(told(key) for key in d.routed.missed)
    return f"All {d.replicas} {d.kind.noun}s together behind {door} miss it: {missed}. One more may be needed: --sure."


def _knee(d: Decision) -> str:
    if d.knee.rate_per_s is None or d.load is None:
        return "Where the knee is could not be found: no rate that was tried holds."
    slow, fast = d.knee_by_factor[max(d.knee_by_factor)], d.knee_by_factor[min(d.knee_by_factor)]
    return (
        f"Knee: {d.knee.rate_per_s:.4g} requests/s, so it runs at {100 * d.load:.0f} % of it; above, "
        f"{miss(d.knee.binding)}. With steps 10 % longer {_rate(slow)}, 10 % shorter {_rate(fast)}."
    )


def _rate(rate: float | None) -> str:
    return "no rate holds" if rate is None else f"{rate:.4g}"


def binds(resources: Sequence[Resource]) -> str:
    """The resource of which more would hold most, and what is left of each."""
    if not resources:
        return ""
    first = resources[0]
    room = ", ".join(f"{r.name} {100 * r.headroom:.0f} %" for r in resources if r.headroom is not None)
    gain = first.gain
    if gain is None:
        return f"Which resource binds could not be told; headroom: {room}."
    if gain < LEAST_GAIN:
        return f"No resource binds alone (10 % more of any holds less than 1 % more); headroom: {room}."
    return f"{first.name} binds (10 % more of it holds {100 * gain:.1f} % more); headroom: {room}."


def _robust(d: Decision) -> str:
    stands = ", ".join(stress.scenario.words for stress in d.stresses if stress.holds)
    fails = ", ".join(stress.scenario.words for stress in d.stresses if not stress.holds)
    if not stands:
        return f"Breaks with any of these: {fails}." if fails else ""
    return f"Holds also with {stands}" + (f"; breaks with {fails}." if fails else ".")


def _lasts(d: Decision, settings: PlanSettings) -> str:
    """The users that it holds, and when growth passes that."""
    demand = settings.demand
    users = demand.users_at(d.knee.rate_per_s) if d.knee.rate_per_s is not None else None
    said = (
        [f"It holds {users:,} users; {demand.users.count:,} were asked."] if users is not None and demand.users else []
    )
    if demand.growth is not None:
        since = f"Growing so from {demand.growth.start:%B %Y} it"
        if d.runs_out is None:
            said.append(f"{since} lasts ten years or more.")
        else:
            months, when = d.runs_out
            said.append(f"{since} runs out in {when:%B %Y}, after {_count(months, 'month')}.")
    return " ".join(said)


def next_try(changes: Sequence[Change]) -> str:
    """The single change to try next."""
    best = next_change(changes)
    if best is None:
        return "No single change serves a request for markedly less."
    now = next(change for change in changes if change.words == "as planned")
    saved = 1 - best.usd_per_million_requests / now.usd_per_million_requests
    return (
        f"Next change to try: {best.words}, which would hold {best.held_per_s:.4g} requests/s; a request would cost "
        f"{100 * saved:.0f} % less."
    )


def provenance(label: str, known: Mapping[str, float] | None) -> str:
    """Where the step times come from, and how much of them was never measured."""
    return f"Step times: {label}{'' if known is None else _outside(known)}."


def _outside(known: Mapping[str, float]) -> str:
    beyond = known.get("extrapolated", 0.0) + known.get("assumed", 0.0)
    return f"; {100 * beyond:.0f} % of the step time lies outside of what was measured"


def _searched(found: SearchResult | None) -> str:
    if found is None:
        return ""
    counts = found.counts()
    ends = ", ".join(
        f"{counts[status]} {one if counts[status] == 1 else more}"
        for status, (one, more) in _ENDS.items()
        if status in counts
    )
    return f"Searched {_count(len(found.kinds), 'kind')} of replica: {ends}."


_ENDS = {
    HOLDS: ("holds", "hold"),
    COSTLIER: ("costs more", "cost more"),
    NEVER_HOLDS: ("never holds", "never hold"),
    TOO_SLOW: ("is too slow", "are too slow"),
    CANNOT: ("cannot run", "cannot run"),
}


def no_way(why: Infeasible) -> list[str]:
    """What binds, by how much, and the ways out."""
    ways = [f"What would: {way}." for way in why.nearest]
    if why.closest == NONE:
        return [f"{why.binding}.", *ways]
    gap = miss(why.binding)
    if why.measured is not None and why.limit is not None:
        unit = " s" if why.binding.endswith("_s") and why.binding != GOODPUT else ""
        gap = f"{named(why.binding)} is {beside(why.measured, why.limit)}{unit}, {why.limit:g}{unit} was promised"
    under = f" with {why.scenario}" if why.scenario else ""
    return [f"Nothing that was allowed holds. Closest: {why.closest}{under}; {gap}.", *ways]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
