"""The chosen deployment from every side: how sure, how near the knee, what binds, what breaks it, its bill."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

from simkit.metrics.intervals import Interval
from simkit.metrics.slo import Promise
from simkit.metrics.step_time_shares import step_time_shares
from simkit.models.roofline import PROVENANCE
from simkit.plan.answer import Question
from simkit.plan.changes import Change, best_changes
from simkit.plan.confidence import Confidence, StepTimeError, confidence, kept_probability
from simkit.plan.cost import Ledger, Use, ledger
from simkit.plan.fleet import replay_routed, share_served
from simkit.plan.knee import Knee, find_knee
from simkit.plan.launch import Launch, launch
from simkit.plan.launch_apart import launch_apart
from simkit.plan.observation import Observation
from simkit.plan.parallel import ALONE, Workers, over
from simkit.plan.resources import Resource, resources
from simkit.plan.scenario import KNOWN, Scenario, scenarios
from simkit.plan.settings import PlanSettings
from simkit.plan.space import Kind
from simkit.plan.unit import Group, Served, Unit
from simkit.plan.use import fleet_use, groups_use
from simkit.plan.waterfalls import Waterfall, waterfalls
from simkit.workloads.workload import Workload

SLOWER, FASTER = 1.1, 0.9


@dataclass(frozen=True)
class Stress:
    """How the chosen deployment stands one scenario."""

    scenario: Scenario
    holds: bool
    missed: tuple[str, ...]
    held_per_s: float | None  # the rate it would hold under it; None: none, or no replica left


@dataclass(frozen=True)
class Decision:
    """One deployment at one rate. Latencies are one replica's, dealt its share, and so the fleet's."""

    kind: Kind
    replicas: int
    rate_per_s: float
    planned: Observation
    routed: Observation | None  # the whole fleet behind its door; None for one replica without any
    door: str
    knee: Knee
    knee_by_factor: Mapping[float, float | None]  # step-time factor -> rate held
    sure: Confidence
    kept_with_one_more: Interval  # probability that the promise is kept with one replica more
    resources: tuple[Resource, ...]  # the one that binds first
    changes: tuple[Change, ...]  # cheapest a request first
    stresses: tuple[Stress, ...]
    runs_out: tuple[int, date] | None  # months from the start of the growth; None: not within ten years, or no growth
    use: Use
    bill: Ledger
    waterfalls: tuple[Waterfall, ...]
    launch: Launch
    memory: tuple[tuple[str, int], ...]  # bytes of one GPU
    known: Mapping[str, float] | None  # share of the step time by how well it is known; None: not told step by step
    provenance: str
    provenance_note: str

    @property
    def load(self) -> float | None:
        """The rate over the rate at the knee."""
        return None if self.knee.rate_per_s is None else self.rate_per_s / self.knee.rate_per_s

    def interval(self, key: str) -> Interval:
        """Where a figure would be found, step times in doubt."""
        return self.sure.together[key]


def decide(
    question: Question,
    kind: Kind,
    replicas: int,
    settings: PlanSettings,
    error: StepTimeError,
    draw: Callable[[int], Workload] | None = None,
    on_part: Callable[[int], None] = lambda _: None,
    workers: Workers = ALONE,
) -> Decision:
    """Replay the chosen deployment as often as its answers need; `on_part` is told how many of `PARTS` are done."""
    spec = question.spec_of(kind)
    workload, rate, promise = question.workload, question.rate_per_s, question.promise
    planned, served = share_served(spec, workload, replicas, rate, promise)
    on_part(1)
    knee = find_knee(spec, workload, replicas, promise, rate * 1.05)
    guess = knee.rate_per_s
    nearby = partial(_knee_at, unit=spec, question=question, units=replicas, guess=guess)
    by_factor = dict(zip((FASTER, SLOWER), over(nearby, (FASTER, SLOWER), workers), strict=True))
    on_part(2)
    doubt = (rate, promise, error, draw, settings.replications, workers)
    sure = confidence(spec, workload, replicas, *doubt)
    one_more = kept_probability(spec, workload, replicas + 1, *doubt)
    on_part(3)
    bound: tuple[Resource, ...] = ()
    if guess is not None:
        bound = tuple(resources(spec, served, workload, promise, replicas, guess, workers, rate / guess))
    on_part(4)
    changes = tuple(best_changes(question, kind, replicas, guess, workers)) if guess is not None else ()
    on_part(5)
    stresses = tuple(_stresses(question, kind, replicas, settings, guess or rate, workers))
    growth = settings.demand.growth
    out = growth.runs_out(guess / rate) if growth is not None and guess is not None else None
    on_part(6)
    if isinstance(spec, Group):
        use = groups_use(spec, replicas, rate, planned, served, kind.gpus)
    else:
        use = fleet_use(spec, workload, replicas, rate, planned, kind.gpus)
    routed = (
        replay_routed(spec, workload, replicas, rate, promise, question.door) if question.has_door(replicas) else None
    )
    on_part(PARTS)
    return Decision(
        kind=kind,
        replicas=replicas,
        rate_per_s=rate,
        planned=planned,
        routed=routed,
        door=question.door_name,
        knee=knee,
        knee_by_factor=by_factor,
        sure=sure,
        kept_with_one_more=one_more,
        resources=bound,
        changes=changes,
        stresses=stresses,
        runs_out=out,
        use=use,
        bill=ledger(use, kind.usd_per_hour, kind.power_w, kind.idle_w, settings.prices),
        waterfalls=tuple(waterfalls(served.requests)),
        launch=_launch(spec, replicas, rate, workload, promise, question.door_name),
        memory=tuple((spec.decode if isinstance(spec, Group) else spec).memory.rows()),
        known=known_shares(spec, served),
        provenance=spec.provenance,
        provenance_note=spec.provenance_note,
    )


PARTS = 7


def _launch(unit: Unit, units: int, rate: float, workload: Workload, promise: Promise, router: str) -> Launch:
    if isinstance(unit, Group):
        return launch_apart(unit, units, rate, workload, promise)
    return launch(unit, units, rate, workload, promise, router)


def known_shares(unit: Unit, served: Served) -> dict[str, float] | None:
    """Measured, interpolated, extrapolated or assumed: the shares of a replay's step time; of a group its decode's."""
    spec, run = (unit.decode, served.runs[-1]) if isinstance(unit, Group) else (unit, served.runs[0])
    if spec.known is not None:
        return step_time_shares([run], spec.known, spec.kv_tokens)
    return {"assumed": 1.0} if spec.provenance == PROVENANCE else None


def _knee_at(factor: float, unit: Unit, question: Question, units: int, guess: float | None) -> float | None:
    """The rate held with steps `factor` times as long."""
    return find_knee(unit, question.workload, units, question.promise, guess, factor).rate_per_s


def _stresses(
    question: Question, kind: Kind, units: int, settings: PlanSettings, guess: float, workers: Workers
) -> Iterator[Stress]:
    """Every scenario that can be asked, whether the plan had to hold under it or not."""
    growth = settings.demand.growth
    names = tuple(name for name in KNOWN if name != "growth" or growth is not None)
    asked = scenarios(names, settings.stresses, growth)
    unit = question.spec_of(kind)
    for stress in over(partial(_stress, question=question, unit=unit, units=units, guess=guess), asked, workers):
        words = stress.scenario.words.replace("replica", kind.noun)
        yield replace(stress, scenario=replace(stress.scenario, words=words))


def _stress(scenario: Scenario, question: Question, unit: Unit, units: int, guess: float) -> Stress:
    if units <= scenario.replicas_down:
        return Stress(scenario, False, ("nothing is left",), None)
    # where the search begins, near where it ends: most kinds hold about in proportion
    harder = scenario.rate_factor * scenario.step_time_factor * scenario.prompt_factor * scenario.burst_factor
    start = guess / harder * (units - scenario.replicas_down) / units
    reached = find_knee(unit, question.workload, units, question.promise, start, precision=0.02, scenario=scenario)
    # each scenario is harder than the plan; where another share of a trace says otherwise, that is luck
    held = None if reached.rate_per_s is None else min(reached.rate_per_s, guess)
    holds = held is not None and held >= question.rate_per_s
    return Stress(scenario, holds, () if holds else (reached.binding,), held)
