"""The cheapest deployment that keeps its promise with a probability: on other days, with other step times."""

from collections.abc import Callable

from simkit.plan.answer import Question
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
