"""How far a prediction may be off: an interval from errors on runs whose model the constants had not seen.

Three things spread a prediction: the model's own error (the leave-one-model-out residuals that ship, one for each
measured run), arrival times (replays with other seeds), and, for a device without tables of its own, the spread of the
fractions that its stand-in lends it. The first is taken as measured, not as a normal distribution: the interval is
between quantiles of the residuals with the correction of split conformal prediction (Vovk et al., 2005), so that it
holds its share of new runs that are like those measured. A run's own model is left out where it is among them.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.errors import InputError
from simkit.fidelity.figures import COMPARED, Figures
from simkit.models.yaml_file import read_mapping

F64 = NDArray[np.float64]
RESIDUALS_FILE = Path(__file__).parent / "residuals.yaml"
LEVEL = 0.90
# ln of what a stand-in's fractions may be off: the spread of the six measured devices' GEMM bandwidths
STAND_IN_SPREAD = 0.06


class Interval(NamedTuple):
    """Bounds, ms."""

    low: float
    high: float


class Residuals(NamedTuple):
    """ln(predicted / measured) of each measured run."""

    models: tuple[str, ...]
    by_metric: dict[str, F64]  # [runs]; NaN where not measured


@cache
def shipped_residuals() -> Residuals:
    """Those of the runs that the engine's constants were fitted on, each by constants fitted without its model."""
    rows = read_mapping(RESIDUALS_FILE).get("runs")
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{RESIDUALS_FILE}: runs: is missing; install simkit again")
    return Residuals(
        tuple(str(row["model"]) for row in rows),
        {metric: np.array([float(row.get(metric, np.nan)) for row in rows]) for metric in COMPARED},
    )


def interval(
    metric: str,
    value: float,
    residuals: Residuals,
    seeds: Sequence[float] = (),
    model: str | None = None,
    stand_in: bool = False,
    level: float = LEVEL,
) -> Interval | None:
    """The interval around a predicted value that the measured one lies in with probability `level`.

    Args:
        metric: one of COMPARED; None is returned for another, whose errors nobody measured.
        value: the prediction, ms.
        residuals: errors on measured runs.
        seeds: the same prediction with other arrival seeds, ms; their spread is added in quadrature.
        model: the run's own model, whose residuals are not used.
        stand_in: the device has no tables of its own.
        level: share of runs the interval is to hold.
    """
    if metric not in residuals.by_metric or not np.isfinite(value) or value <= 0:
        return None
    every = residuals.by_metric[metric]
    others = every[np.array([other != model for other in residuals.models]) & np.isfinite(every)]
    if len(others) < 10:
        return None
    low, high = (np.quantile(others, share, method="linear") for share in conformal_shares(len(others), level))
    spread = float(np.std(np.log(np.asarray(seeds) / value))) if len(seeds) > 1 else 0.0
    spread = float(np.hypot(spread, STAND_IN_SPREAD if stand_in else 0.0))
    wide = 1.645 * spread  # of a normal distribution, at 90 %
    # measured = predicted x exp(-residual)
    return Interval(
        float(value * np.exp(-np.hypot(max(high, 0.0), wide) if high > 0 else -high - wide)),
        float(value * np.exp(np.hypot(max(-low, 0.0), wide) if low < 0 else -low + wide)),
    )


def conformal_shares(count: int, level: float) -> tuple[float, float]:
    """The quantiles between which a new value lies with probability `level`, given `count` exchangeable ones."""
    tail = (1.0 - level) / 2.0
    return max(0.0, tail * (count + 1) / count - 1.0 / count), min(1.0, (1.0 - tail) * (count + 1) / count)


def intervals(
    predicted: Figures,
    residuals: Residuals,
    seeds: Sequence[Figures] = (),
    model: str | None = None,
    stand_in: bool = False,
) -> dict[str, Interval]:
    """The interval of each figure that has one."""
    found = {
        metric: interval(
            metric, value, residuals, [other[metric] for other in seeds if metric in other], model, stand_in
        )
        for metric, value in predicted.items()
    }
    return {metric: bounds for metric, bounds in found.items() if bounds is not None}
