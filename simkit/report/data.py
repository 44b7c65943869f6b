"""What a report is made from: values only, all computed by others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

from simkit.metrics.load import LoadPoint
from simkit.metrics.result import I64, RunResult
from simkit.metrics.slo import targets


@dataclass(frozen=True)
class Sensitivity:
    """The same run with every step `step_time_factor` times as long."""

    step_time_factor: float
    point: LoadPoint


@dataclass(frozen=True)
class ReportData:
    """All that one report shows.

    Raises `InputError` on construction when a key of `slo` is not `METRIC_STATISTIC_s` or a limit is not positive.
    """

    title: str
    result: RunResult
    summary: Mapping[str, object]
    config: Mapping[str, object] = field(default_factory=dict)  # resolved
    sweep: Sequence[LoadPoint] = ()
    sensitivity: Sequence[Sensitivity] = ()
    slo: Mapping[str, float] = field(default_factory=dict)  # {"ttft_p99_s": 0.5}
    versions: Mapping[str, str] = field(default_factory=dict)  # taken from the summary when empty
    places: Mapping[str, I64] = field(default_factory=dict)  # of a fleet: replicas by request, [n] each; -1: at none

    def __post_init__(self) -> None:
        targets(self.slo)


def at(tree: object, *path: str) -> object:
    """The value at a path of a tree of mappings, None where a key is missing."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def number_at(tree: object, *path: str) -> float | None:
    """The finite number at a path of a tree of mappings, None where there is none."""
    value = at(tree, *path)
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):  # numpy's integers too
        return int(value)
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def section(tree: object, *path: str) -> Mapping[str, object]:
    """The mapping at a path of a tree of mappings, empty where there is none."""
    value = at(tree, *path)
    return value if isinstance(value, Mapping) else {}
