"""Which resource binds, and what is left of each: shares in use, and what ten percent more of it would give.

What binds is found by asking: the rate held with a tenth more of one resource, all else equal. Its exponent (1 means
that the rate grows in proportion) is what a share in use cannot tell, since a step waits for one thing at a time.
"""

import math
from dataclasses import dataclass
from functools import partial

from simkit.metrics.slo import Promise
from simkit.plan.group_resources import group_in_use, group_with_more
from simkit.plan.knee import find_knee
from simkit.plan.parallel import ALONE, Workers, over
from simkit.plan.replica_resources import MORE, in_use, with_more
from simkit.plan.unit import Group, Served, Unit
from simkit.workloads.workload import Workload

LEAST_GAIN = 0.01  # of the rate held: less than this is within what the search for a knee tells apart
PLAYS_A_PART = 0.10  # in use at the knee; of a group's seven resources only these are asked for


@dataclass(frozen=True)
class Resource:
    """One resource of a replica."""

    name: str
    used: float | None  # share in use, 0 to 1 (KV: at the peak); None where it plays no part
    exponent: float | None  # d ln(rate held) / d ln(resource); None where it was not asked

    @property
    def gain(self) -> float | None:
        """By which share a tenth more of it raises the rate held; None where it was not asked."""
        return None if self.exponent is None else MORE**self.exponent - 1

    @property
    def headroom(self) -> float | None:
        """The share not in use."""
        return None if self.used is None else max(0.0, 1.0 - self.used)


def resources(
    unit: Unit,
    served: Served,
    workload: Workload,
    promise: Promise,
    units: int,
    knee_per_s: float,
    workers: Workers = ALONE,
    load: float = 1.0,
) -> list[Resource]:
    """Every resource's share in use in a replay, and its exponent at the knee; the one that binds first.

    The replay was at `load` times the rate of the knee.
    """
    used = group_in_use(unit, served) if isinstance(unit, Group) else in_use(unit, served.runs[0])
    least = PLAYS_A_PART * min(load, 1.0) if isinstance(unit, Group) else 0.0
    asked = partial(
        _resource, unit=unit, workload=workload, promise=promise, units=units, knee_per_s=knee_per_s, least=least
    )
    return sorted(over(asked, list(used.items()), workers), key=lambda one: -(one.exponent or 0.0))


def _resource(
    used: tuple[str, float | None],
    unit: Unit,
    workload: Workload,
    promise: Promise,
    units: int,
    knee_per_s: float,
    least: float,
) -> Resource:
    name, share = used
    if share is None or share < least:
        return Resource(name, share, None)
    better = group_with_more(unit, name) if isinstance(unit, Group) else with_more(unit, name)
    if better is None:
        return Resource(name, share, None)
    reached = find_knee(better, workload, units, promise, knee_per_s * 1.02, precision=0.004).rate_per_s
    exponent = None if reached is None else math.log(reached / knee_per_s) / math.log(MORE)
    return Resource(name, share, exponent)
