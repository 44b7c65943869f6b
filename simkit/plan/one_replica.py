"""One replica at the highest rate that it holds: how sure that is, what binds it, what it costs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from simkit.metrics.intervals import Interval
from simkit.plan.answer import Question
from simkit.plan.changes import Change, best_changes
from simkit.plan.confidence import Confidence, StepTimeError, confidence, kept_probability
from simkit.plan.cost import Ledger, Prices, Use, ledger
from simkit.plan.decision import known_shares
from simkit.plan.fleet import share_served
from simkit.plan.knee import find_knee
from simkit.plan.observation import Observation
from simkit.plan.resources import Resource, resources
from simkit.plan.space import Kind
from simkit.plan.unit import Group
from simkit.plan.use import fleet_use
from simkit.plan.waterfalls import Waterfall, waterfalls
from simkit.workloads.workload import Workload

BELOW = (0.9, 0.8)  # of the rate: what leaving room buys


@dataclass(frozen=True)
class OneReplica:
    """What is known of a replica at a rate, besides that it holds there."""

    kind: Kind
    rate_per_s: float
    planned: Observation
    sure: Confidence
    kept_below: Mapping[float, Interval]  # share of the rate -> probability that the promise is kept there
    resources: tuple[Resource, ...]  # the one that binds first
    changes: tuple[Change, ...]  # cheapest a request first
    use: Use
    bill: Ledger
    waterfalls: tuple[Waterfall, ...]
    known: Mapping[str, float] | None  # share of the step time by how well it is known


PARTS = 4


def look_at(
    question: Question,
    kind: Kind,
    error: StepTimeError,
    replications: int,
    draw: Callable[[int], Workload] | None = None,
    on_part: Callable[[int], None] = lambda _: None,
) -> OneReplica:
    """Replay one replica (no group) at the question's rate; `on_part` is told how many of `PARTS` are done."""
    spec = question.spec_of(kind)
    assert not isinstance(spec, Group), "one replica is asked for"
    workload, rate, promise = question.workload, question.rate_per_s, question.promise
    planned, served = share_served(spec, workload, 1, rate, promise)
    sure = confidence(spec, workload, 1, rate, promise, error, draw, replications)
    on_part(1)
    below = {
        share: kept_probability(spec, workload, 1, share * rate, promise, error, draw, replications) for share in BELOW
    }
    on_part(2)
    knee = find_knee(spec, workload, 1, promise, rate).rate_per_s or rate
    bound = resources(spec, served, workload, promise, 1, knee)
    on_part(3)
    changes = best_changes(question, kind, 1, knee)
    use = fleet_use(spec, workload, 1, rate, planned, kind.gpus)
    on_part(PARTS)
    return OneReplica(
        kind=kind,
        rate_per_s=rate,
        planned=planned,
        sure=sure,
        kept_below=below,
        resources=tuple(bound),
        changes=tuple(changes),
        use=use,
        bill=ledger(use, kind.usd_per_hour, kind.power_w, kind.idle_w, Prices()),
        waterfalls=tuple(waterfalls(served.requests)),
        known=known_shares(spec, served),
    )
