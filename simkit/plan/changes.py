"""One change at a time: what would hold more for the money, and what would make an impossible plan possible."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from simkit.engine.deployment import Deployment
from simkit.errors import InputError
from simkit.metrics.slo import ATTAINMENT, GOODPUT, Promise, Target
from simkit.models.device import known_devices, load_device
from simkit.plan.answer import CANNOT, Question, answer, start
from simkit.plan.fleet import replay_share
from simkit.plan.knee import find_knee
from simkit.plan.observation import GIVEN_UP, REJECTED, SATURATED, UNFINISHED, Observation, named
from simkit.plan.parallel import ALONE, Workers, over
from simkit.plan.scenario import AS_PLANNED, Scenario
from simkit.plan.search import SearchResult, search
from simkit.plan.space import Apart, DeviceOffer, Kind, SearchSpace, kinds
from simkit.plan.unit import serves_alike

NEAREST = 3
NONE = "none"  # of the kinds can run, so none comes closest
MORE_REPLICAS, MOST_REPLICAS = 16, 10_000  # times as many as were allowed, when asked whether more would do
MOST_TRIED = 24  # kinds of an infeasible search that are looked at for how far off they are


@dataclass(frozen=True)
class Change:
    """A change of the chosen kind and what it would do."""

    words: str
    held_per_s: float  # by as many replicas
    usd_per_hour: float
    usd_per_million_requests: float  # at the rate held


def single_changes(kind: Kind) -> Iterator[tuple[str, Kind]]:
    """The kind with one setting changed; some may be impossible, or what the kind has by default."""
    if kind.apart is not None:
        yield from _group_changes(kind, kind.apart)
        return
    deployment = kind.deployment
    engine, layout = deployment.engine, deployment.layout

    def other(words: str, **updates: object) -> tuple[str, Kind]:
        return words, replace(kind, deployment=deployment.model_copy(update=updates))

    def setting(words: str, **updates: object) -> tuple[str, Kind]:
        return other(words, engine=engine.model_copy(update=updates))

    if deployment.weights not in ("fp8", "int4", "nvfp4", "mxfp4"):
        yield other("weights in fp8", weights="fp8")
    if deployment.kv != "fp8":
        yield other("KV cache in fp8", kv="fp8")
    expert = 2 * layout.tensor if layout.expert > 1 else 1
    doubled = layout.model_copy(update={"tensor": 2 * layout.tensor, "expert": expert})
    yield other(f"tensor {doubled.tensor}", layout=doubled)
    if layout.tensor > 1:
        expert = layout.tensor // 2 if layout.expert > 1 and layout.tensor > 2 else 1
        halved = layout.model_copy(update={"tensor": layout.tensor // 2, "expert": expert})
        yield other(f"tensor {halved.tensor}", layout=halved)
    if engine.max_num_seqs is not None:
        yield setting(f"max_num_seqs {2 * engine.max_num_seqs}", max_num_seqs=2 * engine.max_num_seqs)
    for tokens in (2048, 16384):
        if engine.max_num_batched_tokens != tokens:
            yield setting(f"max_num_batched_tokens {tokens}", max_num_batched_tokens=tokens)
    if engine.gpu_memory_utilization < 0.95:
        yield setting("gpu_memory_utilization 0.95", gpu_memory_utilization=0.95)


def _group_changes(kind: Kind, apart: Apart) -> Iterator[tuple[str, Kind]]:
    """Another ratio, both roles at another precision, or no group at all."""

    def ratio(prefills: int, decodes: int) -> tuple[str, Kind]:
        changed = replace(apart, prefills=prefills, decodes=decodes)
        return f"groups of {prefills}P{decodes}D", replace(kind, apart=changed)

    def both(words: str, **updates: object) -> tuple[str, Kind]:
        changed = replace(apart, prefill=apart.prefill.model_copy(update=updates))
        return words, replace(kind, deployment=kind.deployment.model_copy(update=updates), apart=changed)

    yield ratio(apart.prefills + 1, apart.decodes)
    yield ratio(apart.prefills, apart.decodes + 1)
    yield "as many GPUs together, not apart", replace(kind, apart=None)
    if kind.deployment.weights not in ("fp8", "int4", "nvfp4", "mxfp4"):
        yield both("weights in fp8", weights="fp8")
    if kind.deployment.kv != "fp8":
        yield both("KV cache in fp8", kv="fp8")


def best_changes(
    question: Question, kind: Kind, replicas: int, held_per_s: float, workers: Workers = ALONE
) -> list[Change]:
    """Every possible single change, cheapest a request first; "as planned" is among them."""
    asked = partial(_tried, question=question, kind=kind, replicas=replicas, held_per_s=held_per_s)
    found = [one for one in over(asked, list(single_changes(kind)), workers) if one is not None]
    found.append(_change("as planned", kind, replicas, held_per_s))
    return sorted(found, key=lambda change: change.usd_per_million_requests)


def _tried(change: tuple[str, Kind], question: Question, kind: Kind, replicas: int, held_per_s: float) -> Change | None:
    """What a change would do; None where it is impossible, changes nothing or holds nothing."""
    words, changed = change
    units = max(1, replicas * kind.gpus // changed.gpus) if changed.noun != kind.noun else replicas
    try:
        unit = question.spec_of(changed)
        # a value that was left out may be what the engine takes by itself, a precision the one that was published
        if changed.gpus == kind.gpus and serves_alike(unit, question.spec_of(kind)):
            return None
        reached = find_knee(unit, question.workload, units, question.promise, held_per_s, precision=0.02)
    except InputError:
        return None
    return None if reached.rate_per_s is None else _change(words, changed, units, reached.rate_per_s)


def next_change(changes: Sequence[Change]) -> Change | None:
    """The first of the changes, cheapest first, if it serves a request by more than 2 % cheaper than "as planned"."""
    now = next((change for change in changes if change.words == "as planned"), None)
    if now is None:
        return None
    best = changes[0]
    return best if best.usd_per_million_requests < 0.98 * now.usd_per_million_requests else None


def _change(words: str, kind: Kind, replicas: int, held_per_s: float) -> Change:
    usd = replicas * kind.replica_usd_per_hour
    return Change(words, held_per_s, usd, 1e6 * usd / 3600 / held_per_s)


@dataclass(frozen=True)
class Infeasible:
    """Why nothing holds, by how much, and what would."""

    closest: str  # the kind that comes closest
    binding: str  # what it misses most
    gap: float  # measured / limit there, above 1; inf: the queue grows, or no replica is left
    measured: float | None
    limit: float | None
    nearest: tuple[str, ...]  # changes that would make it feasible, at most three
    scenario: str = ""  # in words, under which it fails; "" as planned


@dataclass(frozen=True)
class _Short:
    """A kind at its most replicas, in every scenario."""

    kind: Kind
    seen: tuple[tuple[Scenario, Observation | None], ...]  # None: the scenario leaves no replica

    @property
    def worst(self) -> tuple[Scenario, Observation | None]:
        """The scenario that it misses most; of equals the first."""
        return max(self.seen, key=lambda pair: _gap(pair[1]))


def _gap(seen: Observation | None) -> float:
    return math.inf if seen is None or seen.saturated else seen.worst


def infeasible(question: Question, found: SearchResult, base: Deployment, space: SearchSpace) -> Infeasible:
    """Look at a search in which nothing holds: the kind that comes closest at its most replicas, and the ways out."""
    runnable = [
        kind
        for kind, one in zip(found.kinds, found.answers, strict=True)
        if one.status != CANNOT and kind.most_replicas >= 1
    ]
    if not runnable:
        reason = found.answers[0].reason
        # a context that is too short is so on every device
        others = () if "max_model_len=" in reason else _hardware(question, base, space)
        return Infeasible(NONE, f"Nothing that was allowed can run: {reason}", math.inf, None, None, others)
    seen = [_short(kind, question) for kind in runnable[:MOST_TRIED]]
    closest = min(seen, key=lambda one: (_gap(one.worst[1]), one.kind.number))
    scenario, there = closest.worst
    binding, measured, limit = ("no replica is left", None, None) if there is None else _worst(there, question.promise)
    return Infeasible(
        closest=f"{closest.kind.label} x {closest.kind.most_replicas}",
        binding=binding,
        gap=_gap(there),
        measured=measured,
        limit=limit,
        nearest=tuple(islice(_ways(question, closest, base, space), NEAREST)),
        scenario="" if scenario is AS_PLANNED else scenario.words,
    )


def _short(kind: Kind, question: Question) -> _Short:
    unit, most = question.spec_of(kind), kind.most_replicas
    asked = (question.workload, most, question.rate_per_s, question.promise)
    return _Short(
        kind,
        tuple(
            (scenario, None if most <= scenario.replicas_down else replay_share(unit, *asked, scenario))
            for scenario in question.scenarios
        ),
    )


def _ways(question: Question, short: _Short, base: Deployment, space: SearchSpace) -> Iterator[str]:
    """What would hold, nearest first; later ones are not looked for where the first are enough."""
    yield from _relaxed(short, question.promise)
    yield from _more_replicas(question, short.kind)
    yield from _less_traffic(question, short.kind)
    yield from _hardware(question, base, space)


def _worst(seen: Observation, promise: Promise) -> tuple[str, float | None, float | None]:
    """(what is missed most, measured, limit)."""
    limits: dict[str, float | None] = {target.key: target.limit_s for target in promise.targets}
    limits |= {"attainment": promise.attainment, "goodput_per_s": promise.goodput_per_s}
    missed = [key for key in seen.missed if limits.get(key) is not None]
    if seen.saturated:
        return SATURATED, None, None
    if not missed:
        return (seen.missed[0] if seen.missed else "nothing"), None, None

    def gap(key: str) -> float:
        limit, value = limits[key], seen.figures[key]
        assert limit is not None, "filtered above"
        return value / limit if key.endswith("_s") and key != "goodput_per_s" else limit / max(value, 1e-12)

    worst = max(missed, key=gap)
    return worst, seen.figures[worst], limits[worst]


def _relaxed(short: _Short, promise: Promise) -> Iterator[str]:
    """The targets at which these replays would have held, all scenarios together."""
    seen = [one for _, one in short.seen if one is not None and not one.saturated]
    unkept = {key for one in seen for key in one.missed}
    if len(seen) < len(short.seen) or unkept & {UNFINISHED, REJECTED, GIVEN_UP}:
        return
    looser = [
        _looser(target, max(one.figures[target.key] for one in seen))
        for target in promise.targets
        if target.key in unkept
    ]
    if promise.attainment is not None and ATTAINMENT in unkept:
        looser.append(f"attainment {math.floor(1000 * min(one.attained for one in seen)) / 1000:g}")
    if GOODPUT in unkept and (least := min(one.figures[GOODPUT] for one in seen)) > 0:
        looser.append(f"goodput {_rounded_down(least)} requests/s")
    if looser:
        yield f"promise {' and '.join(looser)} ({short.kind.label} x {short.kind.most_replicas} holds it)"


def _looser(target: Target, value: float) -> str:
    digits = 10 ** (math.floor(math.log10(value)) - 2)
    return f"{named(target.key)} {math.ceil(value / digits) * digits:.3g} s (not {target.limit_s:g} s)"


def _more_replicas(question: Question, kind: Kind) -> Iterator[str]:
    """More of the same than were allowed."""
    most = min(MOST_REPLICAS, MORE_REPLICAS * kind.most_replicas)
    wider = replace(kind, most_replicas=most)
    one = answer(start(wider, question), question)
    if one.replicas is not None:
        number = f"{one.replicas} {kind.noun}s of {kind.label} instead of {kind.most_replicas}"
        yield f"{number}: {one.usd_per_hour:,.2f} USD/h"


def _less_traffic(question: Question, kind: Kind) -> Iterator[str]:
    """The traffic that the most replicas of the closest kind hold, and what they hold if nothing goes wrong."""
    unit, most = question.spec_of(kind), kind.most_replicas

    def held(scenario: Scenario) -> float | None:
        if most <= scenario.replicas_down:
            return None
        return find_knee(unit, question.workload, most, question.promise, precision=0.02, scenario=scenario).rate_per_s

    rates = [held(scenario) for scenario in question.scenarios]
    least = min((rate or 0.0 for rate in rates), default=0.0)
    if 0 < least < question.rate_per_s:
        yield f"{_rounded_down(least)} requests/s instead of {question.rate_per_s:.4g} ({kind.label} x {most})"
    plain = rates[0]
    if plain is not None and plain >= question.rate_per_s:
        yield (
            f"fewer of the conditions of --robust: as planned {kind.label} x {most} holds {_rounded_down(plain)} "
            "requests/s"
        )


def _rounded_down(rate: float) -> str:
    """Three digits, and no more than the rate: what is offered must hold."""
    digits = 10.0 ** (math.floor(math.log10(rate)) - 2)
    rounded = math.floor(rate / digits) * digits
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:.3g}"


def _hardware(question: Question, base: Deployment, space: SearchSpace) -> tuple[str, ...]:
    """The cheapest way out among all known devices, layouts and precisions, as many replicas as were allowed."""
    wider = SearchSpace(
        models=space.models,
        devices=tuple(DeviceOffer(device=name) for name in known_devices()),
        tensor=tuple(sorted({1, 2, 4, 8, *space.tensor})),
        weights=tuple(dict.fromkeys((*(space.weights or (base.weights,)), "fp8"))),
        kv=tuple(dict.fromkeys((*(space.kv or (base.kv,)), "fp8"))),
        replicas=space.replicas,
    )
    options = [kind for kind in kinds(wider, base) if load_device(kind.deployment.device).usd_per_hour.value > 0]
    chosen = search(options, question).chosen
    if chosen is None:
        return ()
    kind, one = chosen
    deployment = kind.deployment
    settings = f"tensor {deployment.layout.tensor}, weights {deployment.weights or 'as published'}, KV {deployment.kv}"
    where = f"{one.replicas} x {deployment.model} on {deployment.device}"
    return (f"{where}, {settings}: {one.usd_per_hour:.2f} USD/h",)
