"""The highest rate that a fleet holds, and how far a rate is from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from simkit.metrics.slo import Promise
from simkit.plan.answer import FINITE_REPLAY
from simkit.plan.bounds import bounds
from simkit.plan.fleet import replay_share
from simkit.plan.observation import Observation
from simkit.plan.scenario import AS_PLANNED, Scenario
from simkit.plan.unit import Unit
from simkit.workloads.workload import Workload

# of the bound, where the search gives up: far below it, for where prompts share content the bound counts answers alone
LOWEST_SHARE = 1.0 / 65536.0


@dataclass(frozen=True)
class Knee:
    """The answer of one search over rates."""

    rate_per_s: float | None  # of the fleet; None: no rate that was tried holds
    binding: str  # the first thing missed just above it
    seen: tuple[tuple[float, Observation], ...]  # in order of rate

    @property
    def above(self) -> Observation | None:
        """The lowest rate tried that does not hold."""
        return next((one for rate, one in self.seen if self.rate_per_s is None or rate > self.rate_per_s), None)


def find_knee(
    spec: Unit,
    workload: Workload,
    replicas: int,
    promise: Promise,
    guess_per_s: float | None = None,
    step_time_factor: float = 1.0,
    precision: float = 0.01,
    scenario: Scenario = AS_PLANNED,
) -> Knee:
    """The highest rate that `replicas` replicas hold, to within `precision`; latencies are taken to rise with it."""
    seen: dict[float, Observation] = {}

    def holds(rate: float) -> bool:
        seen[rate] = replay_share(spec, workload, replicas, rate, promise, scenario, step_time_factor)
        return seen[rate].holds

    ceiling = FINITE_REPLAY * replicas * bounds(spec, workload, promise).rate_per_s / step_time_factor
    if not 0 < ceiling < math.inf:
        return Knee(None, "rejected", ())
    found = highest_rate(holds, ceiling, guess_per_s, precision)
    ordered = tuple((rate, seen[rate]) for rate in sorted(seen))
    first_bad = next((one for rate, one in ordered if found is None or rate > found), None)
    return Knee(found, first_bad.missed[0] if first_bad is not None and first_bad.missed else "saturated", ordered)


def highest_rate(holds: Callable[[float], bool], ceiling: float, guess: float | None, precision: float) -> float | None:
    """The highest rate below `ceiling` that holds, taken to be monotone; None if none does down to `LOWEST_SHARE`."""
    width = 2.0 if guess is None else 1.1
    low = rate = min(ceiling / 2 if guess is None else guess, ceiling)
    high = ceiling
    if holds(rate):
        while rate * width < ceiling:
            rate *= width
            if not holds(rate):
                high = rate
                break
            low = rate
            width **= 2
    else:
        high = rate
        while True:
            if rate <= LOWEST_SHARE * ceiling:
                return None
            rate = max(rate / width, LOWEST_SHARE * ceiling)
            if holds(rate):
                low = rate
                break
            high = rate
            width **= 2
    while high / low > 1 + precision:
        middle = math.sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
