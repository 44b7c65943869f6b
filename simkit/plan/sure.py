"""The cheapest deployment that keeps its promise with a probability: on other days, with other step times."""

import math
from collections.abc import Callable
from dataclasses import replace

from simkit.plan.answer import Question
from simkit.plan.changes import MORE_REPLICAS, MOST_REPLICAS, Infeasible
from simkit.plan.confidence import StepTimeError, kept_probability
from simkit.plan.fleet import replay_routed
from simkit.plan.parallel import ALONE, Workers
from simkit.plan.search import SearchResult
from simkit.plan.settings import PlanSettings
from simkit.plan.space import Kind
from simkit.plan.unit import Unit
from simkit.workloads.workload import Workload


def surely(
    question: Question,
    found: SearchResult,
    settings: PlanSettings,
    error_of: Callable[[Unit], StepTimeError],
    draw: Callable[[int], Workload] | None,
    workers: Workers = ALONE,
) -> tuple[Kind, int] | None:
    """(kind, replicas) of the cheapest that keeps its promise with probability `settings.sure`; None if none does.

    The fleet replayed whole behind its router must keep it too. To be sure never takes fewer replicas than to hold
    once, so kinds are tried in order of what they cost without, until that is no less than the best: this is exact.
    """
    held = [(one.usd_per_hour or 0.0, one.number, one.replicas or 1) for one in found.answers if one.holds]
    best: tuple[float, Kind, int] | None = None
    for plain_usd, number, least in sorted(held):
        if best is not None and plain_usd >= best[0]:
            break
        kind = found.kinds[number]
        spec = question.spec_of(kind)
        error = error_of(spec)
        for replicas in range(least, kind.most_replicas + 1):
            usd = replicas * kind.replica_usd_per_hour
            if best is not None and usd >= best[0]:
                break
            if _is_sure(question, spec, replicas, settings, error, draw, workers):
                best = (usd, kind, replicas)
                break
    return None if best is None else best[1:]


def unsure(
    question: Question,
    found: SearchResult,
    settings: PlanSettings,
    error_of: Callable[[Unit], StepTimeError],
    draw: Callable[[int], Workload] | None,
    workers: Workers = ALONE,
) -> Infeasible:
    """Where `surely` found none: how sure the most replicas of the cheapest kind are, and what would do."""
    assert found.chosen is not None, "asked where something holds on the workload itself"
    assert settings.sure is not None, "asked where the plan must be sure"
    kind = found.chosen[0]
    unit, most = question.spec_of(kind), kind.most_replicas
    asked = (question.workload, most, question.rate_per_s, question.promise)
    kept = kept_probability(unit, *asked, error_of(unit), draw, settings.replications, workers).value
    ways = [f"--sure {kept:g} ({kind.label} x {most} keeps the promise with it)"] if 0 < kept < settings.sure else []
    wider = tuple(
        replace(one, most_replicas=min(MOST_REPLICAS, MORE_REPLICAS * one.most_replicas)) for one in found.kinds
    )
    more = surely(question, replace(found, kinds=wider), settings, error_of, draw, workers)
    if more is not None:
        usd = more[1] * more[0].replica_usd_per_hour
        ways.append(f"{more[1]} {more[0].noun}s of {more[0].label} instead of {most}: {usd:,.2f} USD/h")
    behind = "" if kept < settings.sure else f"; it misses behind {question.door_name}"
    binding = (
        f"the promise is kept with probability {kept:.2f}, {settings.sure:g} was asked (plan.sure={settings.sure:g})"
        f"{behind}"
    )
    gap = settings.sure / kept if kept > 0 else math.inf
    return Infeasible(f"{kind.label} x {most}", binding, gap, None, None, tuple(ways))


def _is_sure(
    question: Question,
    spec: Unit,
    replicas: int,
    settings: PlanSettings,
    error: StepTimeError,
    draw: Callable[[int], Workload] | None,
    workers: Workers,
) -> bool:
    asked = (question.workload, replicas, question.rate_per_s, question.promise)
    if question.has_door(replicas) and not replay_routed(spec, *asked, question.door).holds:
        return False
    kept = kept_probability(spec, *asked, error, draw, settings.replications, workers)
    return settings.sure is not None and kept.value >= settings.sure
