"""How many replicas there should be: rules that look at a pool now and then."""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field

from simkit.cluster.plug_in import OwnCode, find_own
from simkit.errors import InputError

ENTRY_POINTS = "simkit.scaling_rules"
FUNCTION = "desired"  # unless `file.py:other` names another


class Signals(NamedTuple):
    """A pool at one moment, and what happened since the last look."""

    now_s: float
    replicas: int  # that serve
    starting: int
    queue: int  # requests at the door
    outstanding: int  # requests that replicas have
    waiting: int  # of these, in replicas' queues
    utilisation: float  # share of the time, since the last look, in which a step was under way, mean over replicas
    attainment: float | None  # share of the requests answered since then that met the targets; None: nobody was
    arrivals_per_s: float


Rule = Callable[[Signals], int]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QueueRule(_Rule):
    """So many requests a replica, those at the door included: Kubernetes' desired = ceil(current x value / target)."""

    kind: Literal["queue"] = "queue"
    target: float = Field(gt=0, le=1e6, description="requests in the system for each replica")

    def desired(self, seen: Signals) -> int:
        """Replicas."""
        return -int(-(seen.queue + seen.outstanding) // self.target)


class UtilisationRule(_Rule):
    """Share of the time in which replicas compute: 1 for any that has a request to decode, so of use for short steps.

    Source of the form: Kubernetes HorizontalPodAutoscaler, algorithm details: desired = ceil(current x value / target),
    and no change while value / target is within 10 % of 1.
    """

    kind: Literal["utilisation"] = "utilisation"
    target: float = Field(default=0.7, gt=0, le=1)
    tolerance: float = Field(default=0.1, ge=0, lt=1)

    def desired(self, seen: Signals) -> int:
        """Replicas."""
        if seen.replicas == 0:
            return 1 if seen.queue > 0 else 0
        ratio = seen.utilisation / self.target
        if abs(ratio - 1.0) <= self.tolerance:
            return seen.replicas
        return -int(-(seen.replicas * ratio) // 1)


class Targets(_Rule):
    """A rule that is told how many requests met their targets."""

    ttft_s: float | None = Field(default=None, gt=0, le=1e6, description="target that `signals.attainment` is about")
    tpot_s: float | None = Field(default=None, gt=0, le=1e6)

    def met(self, ttft_s: float, tpot_s: float) -> bool:
        """Whether a request met its targets."""
        return (self.ttft_s is None or ttft_s <= self.ttft_s) and (self.tpot_s is None or tpot_s <= self.tpot_s)


class SloRule(Targets):
    """More replicas while too few requests meet their targets, one fewer while nearly all do.

    It feels its way down; `down_stabilization_s` says how fast. How long replicas are busy says little: one with a
    single request to decode is busy all the time.
    """

    kind: Literal["slo"] = "slo"
    attainment: float = Field(default=0.95, gt=0, le=1)
    step: float = Field(default=0.25, gt=0, le=10, description="share of the replicas that are added at a time")
    comfortable: float = Field(default=0.99, gt=0, le=1, description="attainment from which on one is taken away")

    def desired(self, seen: Signals) -> int:
        """Replicas."""
        if seen.replicas == 0:
            return 1 if seen.queue > 0 else 0
        if seen.queue > 0 or (seen.attainment is not None and seen.attainment < self.attainment):
            return seen.replicas + max(1, round(seen.replicas * self.step))
        fine = seen.attainment is None or seen.attainment >= self.comfortable
        return seen.replicas - 1 if fine else seen.replicas


class OwnRule(Targets):
    """A function `desired(signals) -> int` of one's own."""

    kind: Literal["own"] = "own"
    path: str = Field(description="a .py file, file.py:function, or an entry point's name")

    def function(self) -> Rule:
        """The function; InputError if it is not there."""
        found = find_own(self.path, ENTRY_POINTS, FUNCTION)
        if not callable(found):
            raise InputError(
                f"autoscaling.rule.path={self.path!r}: is no function; give a .py file with desired(signals)"
            )
        function = cast(Callable[[Signals], object], found)

        def desired(seen: Signals) -> int:
            with OwnCode(self.path, "; desired(signals) must return a number"):
                return int(cast(int, function(seen)))

        return desired


RuleSpec = Annotated[QueueRule | UtilisationRule | SloRule | OwnRule, Field(discriminator="kind")]


def rule_of(spec: RuleSpec) -> Rule:
    """The function that a rule stands for; InputError if one's own is not there."""
    return spec.function() if isinstance(spec, OwnRule) else spec.desired
