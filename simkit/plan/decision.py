"""The chosen deployment from every side: how sure, how near the knee, what binds, what breaks it, its bill."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date

from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.intervals import Interval
from simkit.metrics.result import RunResult
from simkit.metrics.step_time_shares import step_time_shares
from simkit.models.roofline import PROVENANCE
from simkit.plan.answer import Question
from simkit.plan.changes import Change, best_changes
from simkit.plan.confidence import Confidence, StepTimeError, confidence, kept_probability
from simkit.plan.cost import Ledger, Use, ledger
from simkit.plan.fleet import replay_routed, replay_share
from simkit.plan.knee import Knee, find_knee
from simkit.plan.launch import Launch, launch
from simkit.plan.observation import Observation
from simkit.plan.resources import Resource, resources
from simkit.plan.scenario import KNOWN, Scenario, scenarios
from simkit.plan.settings import PlanSettings
from simkit.plan.space import Kind
from simkit.plan.sweep import replay
from simkit.plan.traffic import replica_share
from simkit.plan.use import fleet_use
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
    routed: Observation | None  # the whole fleet behind the router; None for one replica
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

    @property
    def next_change(self) -> Change | None:
        """The single change that serves a request cheaper than now, if one does by more than 2 %."""
        now = next((change for change in self.changes if change.words == "as planned"), None)
        if now is None or not self.changes:
            return None
        best = self.changes[0]
        return best if best.usd_per_million_requests < 0.98 * now.usd_per_million_requests else None

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
) -> Decision:
    """Replay the chosen deployment as often as its answers need; `on_part` is told how many of `PARTS` are done."""
    spec = question.spec_of(kind)
    workload, rate, promise = question.workload, question.rate_per_s, question.promise
    planned, result = _planned(spec, question, replicas)
    on_part(1)
    knee = find_knee(spec, workload, replicas, promise, rate * 1.05)
    guess = knee.rate_per_s
    by_factor = {
        factor: find_knee(spec, workload, replicas, promise, guess, factor).rate_per_s for factor in (FASTER, SLOWER)
    }
    on_part(2)
    doubt = (rate, promise, error, draw, settings.replications)
    sure = confidence(spec, workload, replicas, *doubt)
    one_more = kept_probability(spec, workload, replicas + 1, *doubt)
    on_part(3)
    bound = tuple(resources(spec, result, workload, promise, replicas, guess)) if guess is not None else ()
    on_part(4)
    changes = tuple(best_changes(question, kind, replicas, guess)) if guess is not None else ()
    on_part(5)
    stresses = tuple(_stresses(question, spec, replicas, settings, guess or rate))
    growth = settings.demand.growth
    out = growth.runs_out(guess / rate) if growth is not None and guess is not None else None
    on_part(6)
    use = fleet_use(spec, workload, replicas, rate, planned, kind.gpus)
    routed = replay_routed(spec, workload, replicas, rate, promise, settings.router) if replicas > 1 else None
    on_part(PARTS)
    return Decision(
        kind=kind,
        replicas=replicas,
        rate_per_s=rate,
        planned=planned,
        routed=routed,
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
        waterfalls=tuple(waterfalls(result.requests)),
        launch=launch(spec, replicas, rate, workload, promise, settings.router),
        memory=tuple(spec.memory.rows()),
        known=_known(spec, result),
        provenance=spec.provenance,
        provenance_note=spec.provenance_note,
    )


PARTS = 7


def _known(spec: ReplicaSpec, result: RunResult) -> dict[str, float] | None:
    """Measured, interpolated, extrapolated or assumed: the shares of a replay's step time."""
    if spec.known is not None:
        return step_time_shares(result, spec.known, spec.num_blocks * spec.limits.block_size)
    return {"assumed": 1.0} if spec.provenance == PROVENANCE else None


def _planned(spec: ReplicaSpec, question: Question, replicas: int) -> tuple[Observation, RunResult]:
    seen = replay_share(spec, question.workload, replicas, question.rate_per_s, question.promise)
    return seen, replay(spec, replica_share(question.workload, replicas, question.rate_per_s))


def _stresses(
    question: Question, spec: ReplicaSpec, replicas: int, settings: PlanSettings, guess: float
) -> list[Stress]:
    """Every scenario that can be asked, whether the plan had to hold under it or not."""
    growth = settings.demand.growth
    names = tuple(name for name in KNOWN if name != "growth" or growth is not None)
    found = []
    for scenario in scenarios(names, settings.stresses, growth):
        if replicas <= scenario.replicas_down:
            found.append(Stress(scenario, False, ("no replica is left",), None))
            continue
        start = guess / scenario.rate_factor
        reached = find_knee(
            spec, question.workload, replicas, question.promise, start, precision=0.02, scenario=scenario
        )
        # each scenario is harder than the plan; where another share of a trace says otherwise, that is luck
        held = None if reached.rate_per_s is None else min(reached.rate_per_s, guess)
        holds = held is not None and held >= question.rate_per_s
        found.append(Stress(scenario, holds, () if holds else (reached.binding,), held))
    return found
