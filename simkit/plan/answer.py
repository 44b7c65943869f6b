"""How many replicas of one kind are needed: the least number that holds in every scenario, by replays."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from math import ceil

import numpy as np
from pydantic import BaseModel, ConfigDict

from simkit.cluster.settings import Cluster
from simkit.engine.deployment import resolve
from simkit.errors import InputError
from simkit.metrics.slo import Promise
from simkit.models.catalog import load_model
from simkit.plan.bounds import bounds
from simkit.plan.fleet import replay_share
from simkit.plan.observation import REJECTED, Observation, miss, named
from simkit.plan.scenario import AS_PLANNED, Scenario
from simkit.plan.space import Kind
from simkit.plan.unit import Unit, work_out
from simkit.workloads.workload import Workload

Resolve = Callable[[Kind], Unit]

# a finite replay ends, so a rate somewhat above what a replica can last may still pass for stable
FINITE_REPLAY = 1.25

HOLDS, CANNOT, TOO_SLOW, NEVER_HOLDS, COSTLIER = "holds", "cannot run", "too slow", "never holds", "costlier"


def resolve_kind(kind: Kind) -> Unit:
    """The kind worked out, with the step times that its deployment has by itself."""
    return work_out(kind, resolve)


@dataclass(frozen=True)
class Question:
    """What every kind is asked; the same for all of a search."""

    workload: Workload
    rate_per_s: float  # of all replicas together
    promise: Promise
    robust: tuple[Scenario, ...] = ()
    spec_of: Resolve = field(default=resolve_kind)
    door: Cluster = field(default_factory=Cluster)  # before the whole fleet that is replayed in the end; replicas open

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """All that must hold."""
        return (AS_PLANNED, *self.robust)

    @property
    def door_name(self) -> str:
        """The router's."""
        router = self.door.chosen_router
        return router if isinstance(router, str) else str(router.get("kind", "a router"))

    def has_door(self, units: int) -> bool:
        """Whether so many replicas are reached through anything that their shares do not tell of."""
        return units > 1 or self.door.on_the_clock


class Tried(BaseModel):
    """One number of replicas on the way to the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int
    holds: bool
    scenario: str  # the first that fails, else the plain one
    missed: tuple[str, ...]  # in that scenario
    worst: float | None  # measured / limit there; None: without bound


class Answer(BaseModel):
    """What is known of one kind: values only, as they are kept in a study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int  # of the kind
    status: str
    reason: str  # in words, where it does not hold
    least_replicas: int  # no fewer can hold, by the bounds
    replicas: int | None = None  # the least that hold
    usd_per_hour: float | None = None  # of these
    figures: dict[str, float | None] = {}  # at these, as planned
    attained: float | None = None
    tokens_per_s_per_gpu: float | None = None
    tried: tuple[Tried, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether some number of replicas holds."""
        return self.status == HOLDS


@dataclass(frozen=True)
class Start:
    """A kind before any replay: what its bounds say."""

    kind: Kind
    least_replicas: int
    verdict: Answer | None  # None: only replays can tell

    @property
    def least_usd_per_hour(self) -> float:
        """No number of replicas that holds costs less."""
        return self.least_replicas * self.kind.replica_usd_per_hour


def start(kind: Kind, question: Question) -> Start:
    """Resolve a kind and bound it; what cannot run or cannot meet a target is settled here."""

    def settled(status: str, reason: str, least: int = 1) -> Start:
        return Start(kind, least, Answer(number=kind.number, status=status, reason=reason, least_replicas=least))

    if kind.most_replicas < 1:
        return settled(CANNOT, f"one {kind.noun} takes {kind.gpus} GPUs, more than can be had")
    try:
        unit = question.spec_of(kind)
    except InputError as error:
        return settled(CANNOT, str(error))
    known = bounds(unit, question.workload, question.promise)
    if REJECTED in known.missed:
        most = load_model(kind.deployment.model).max_context_tokens
        return settled(CANNOT, too_long(question.workload, unit.limits.max_model_len, most))
    if known.missed:
        floor = known.floors_s.get(known.missed[0])
        at_least = "" if floor is None else f", which is at least {floor:.3g} s"
        return settled(TOO_SLOW, f"even alone on an idle replica a request misses {named(known.missed[0])}{at_least}")
    down = max(scenario.replicas_down for scenario in question.scenarios)
    highest = max(scenario.rate_factor for scenario in question.scenarios)
    least = ceil(highest * question.rate_per_s / (FINITE_REPLAY * known.rate_per_s))
    least = max(least, 1 + down)
    if least > kind.most_replicas:
        allowed = "1 is" if kind.most_replicas == 1 else f"{kind.most_replicas} are"
        reason = f"needs {least} {kind.noun}s or more for {known.limited_by} alone; {allowed} allowed"
        return settled(NEVER_HOLDS, reason, least)
    return Start(kind, least, None)


def answer(begun: Start, question: Question, most_usd_per_hour: float = float("inf")) -> Answer:
    """The fewest replicas of a kind that hold, if that costs no more than `most_usd_per_hour`.

    More replicas are taken to be no worse: the number is bracketed by doubling steps and bisected.
    """
    kind = begun.kind
    if begun.verdict is not None:
        return begun.verdict
    if begun.least_usd_per_hour > most_usd_per_hour:
        why = f"costs at least {begun.least_usd_per_hour:.2f} USD/h"
        return Answer(number=kind.number, status=COSTLIER, reason=why, least_replicas=begun.least_replicas)
    spec = question.spec_of(kind)
    affordable = kind.most_replicas
    if kind.replica_usd_per_hour > 0 and most_usd_per_hour < affordable * kind.replica_usd_per_hour:
        affordable = int(most_usd_per_hour / kind.replica_usd_per_hour * (1 + 1e-12))
    tried: dict[int, tuple[Tried, Observation | None]] = {}

    def holds(replicas: int) -> bool:
        tried[replicas] = try_replicas(spec, question, replicas)
        return tried[replicas][0].holds

    found = least_number(begun.least_replicas, affordable, holds)
    steps = tuple(tried[replicas][0] for replicas in sorted(tried))
    if found is None:
        cut = affordable < kind.most_replicas
        status = COSTLIER if cut else NEVER_HOLDS
        why = f"more than {most_usd_per_hour:.2f} USD/h" if cut else _never(steps, kind)
        return Answer(number=kind.number, status=status, reason=why, least_replicas=begun.least_replicas, tried=steps)
    seen = tried[found][1]
    assert seen is not None, "what holds was observed"
    gpus = found * kind.gpus
    return Answer(
        number=kind.number,
        status=HOLDS,
        reason="",
        least_replicas=begun.least_replicas,
        tried=steps,
        replicas=found,
        usd_per_hour=found * kind.replica_usd_per_hour,
        figures={key: finite(value) for key, value in seen.figures.items()},
        attained=seen.attained,
        tokens_per_s_per_gpu=seen.tokens_per_s * found / gpus,
    )


def too_long(workload: Workload, max_model_len: int, most: int) -> str:
    """Which requests a context turns away, and the one that would take them, if the model has it: at most `most`."""
    lengths = workload.prompt_tokens.astype(np.int64) + workload.output_tokens
    many = int(np.count_nonzero(lengths > max_model_len))
    longest = int(lengths.max())
    way_out = f"deployment.engine.max_model_len={longest} takes them all"
    if longest > most:
        way_out = (
            f"the model takes {most:,} and the longest has {longest:,}: leave those out of the trace, or take another"
        )
    return f"{many:,} of {len(lengths):,} requests are longer than the context of {max_model_len:,} tokens; {way_out}"


def try_replicas(spec: Unit, question: Question, replicas: int) -> tuple[Tried, Observation | None]:
    """One number of replicas in every scenario, and what was seen as planned; stops at the first that fails."""
    planned: Observation | None = None
    for scenario in question.scenarios:
        if replicas <= scenario.replicas_down:
            lost = Tried(replicas=replicas, holds=False, scenario=scenario.name, missed=("no replica",), worst=None)
            return lost, planned
        seen = replay_share(spec, question.workload, replicas, question.rate_per_s, question.promise, scenario)
        planned = seen if scenario is AS_PLANNED else planned
        if not seen.holds:
            return (
                Tried(
                    replicas=replicas, holds=False, scenario=scenario.name, missed=seen.missed, worst=finite(seen.worst)
                ),
                planned,
            )
    assert planned is not None, "the plain scenario is always one of them"
    return Tried(replicas=replicas, holds=True, scenario=AS_PLANNED.name, missed=(), worst=planned.worst), planned


def least_number(least: int, most: int, holds: Callable[[int], bool]) -> int | None:
    """The least number in [least, most] that holds, taken to be monotone; None if none does."""
    if least > most:
        return None
    low, high, step = least - 1, least, 1
    while not holds(high):
        if high == most:
            return None
        low, high, step = high, min(most, high + step), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _never(tried: Iterable[Tried], kind: Kind) -> str:
    last = max(tried, key=lambda one: one.replicas)
    where = "" if last.scenario == AS_PLANNED.name else f" under {last.scenario}"
    several = "" if kind.most_replicas == 1 else "s"
    return f"even with {kind.most_replicas} {kind.noun}{several}{where}: {'; '.join(map(miss, last.missed))}"


def finite(value: float) -> float | None:
    """None for what is not finite, as JSON wants it."""
    return value if abs(value) < float("inf") else None


def kind_tree(kind: Kind) -> dict[str, object]:
    """A kind as JSON."""
    tree = asdict(kind)
    apart = kind.apart
    if apart is not None:
        told = {"prefill": apart.prefill.model_dump(mode="json"), "link": apart.link.model_dump(mode="json")}
        tree["apart"] = {"prefills": apart.prefills, "decodes": apart.decodes, **told}
    return {**tree, "deployment": kind.deployment.model_dump(mode="json"), "label": kind.label, "gpus": kind.gpus}
