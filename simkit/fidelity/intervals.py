"""How far a prediction may be off: an interval from errors on runs whose model the constants had not seen.

Four things spread a prediction: the model's own error (the leave-one-model-out residuals that ship, one for each
measured run); what a queue makes of an error in the step time (replays with steps as much shorter and longer as the
residuals of ITL allow: far from the limits of the engine every latency moves as the step does, which the residuals
hold already, but near them a tail moves by a factor, and how near a run stands is its own); arrival times (replays with
other seeds); and, for a device without tables of its own, the spread of the fractions that its stand-in lends it. The
first is taken as measured, not as a normal distribution: the interval is
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
from simkit.yaml_file import read_mapping

F64 = NDArray[np.float64]
RESIDUALS_FILE = Path(__file__).parent / "residuals.yaml"
LEVEL = 0.90
# residuals: between the least and the largest of n exchangeable ones a new one lies with (n - 1) / (n + 1), so of fewer
# no interval holds 90 %
FEWEST = 19
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


class StepFactors(NamedTuple):
    """How much shorter and longer every step may be than predicted."""

    faster: float
    slower: float


def step_factors(residuals: Residuals, model: str | None = None, level: float = LEVEL) -> StepFactors:
    """The factors that hold a run's mean ITL, and so its steps, with probability `level`; 1 where too few are known."""
    others = _others(residuals, "itl_mean", model)
    if len(others) < FEWEST:
        return StepFactors(1.0, 1.0)
    low, high = (float(np.quantile(others, share)) for share in conformal_shares(len(others), level))
    return StepFactors(float(np.exp(-max(high, 0.0))), float(np.exp(-min(low, 0.0))))


class Queued(NamedTuple):
    """A figure of a run as predicted with every step shorter, and longer, by `step_factors`, ms."""

    faster: float
    slower: float


def _beyond(value: float, queued: Queued | None, factors: StepFactors) -> tuple[float, float]:
    """How much more than the steps themselves a figure falls and rises with them, both >= 0, in ln."""
    if queued is None:
        return 0.0, 0.0
    fall = np.log(value / max(queued.faster, 1e-9)) + np.log(factors.faster)
    rise = np.log(max(queued.slower, 1e-9) / value) - np.log(factors.slower)
    return max(float(fall), 0.0), max(float(rise), 0.0)


def _others(residuals: Residuals, metric: str, model: str | None) -> F64:
    """The known residuals of the other models' runs."""
    every = residuals.by_metric[metric]
    known: F64 = every[np.array([other != model for other in residuals.models]) & np.isfinite(every)]
    return known


def interval(
    metric: str,
    value: float,
    residuals: Residuals,
    seeds: Sequence[float] = (),
    queued: Queued | None = None,
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
        queued: the same prediction with steps shorter and longer; what it moves by beyond them is added likewise.
        model: the run's own model, whose residuals are not used.
        stand_in: the device has no tables of its own.
        level: share of runs the interval is to hold.
    """
    if metric not in residuals.by_metric or not np.isfinite(value) or value <= 0:
        return None
    others = _others(residuals, metric, model)
    if len(others) < FEWEST:
        return None
    low, high = (np.quantile(others, share, method="linear") for share in conformal_shares(len(others), level))
    spread = float(np.std(np.log(np.asarray(seeds) / value), ddof=1)) if len(seeds) > 1 else 0.0
    spread = float(np.hypot(spread, STAND_IN_SPREAD if stand_in else 0.0))
    fall, rise = (
        float(np.hypot(1.645 * spread, beyond))  # 1.645: a normal distribution's, at 90 %
        for beyond in _beyond(value, queued, step_factors(residuals, model, level))
    )
    # measured = predicted x exp(-residual)
    return Interval(
        float(value * np.exp(-np.hypot(high, fall) if high > 0 else -high - fall)),
        float(value * np.exp(np.hypot(low, rise) if low < 0 else -low + rise)),
    )


def conformal_shares(count: int, level: float) -> tuple[float, float]:
    """The quantiles between which a new value lies with probability `level`, given `count` exchangeable ones."""
    tail = (1.0 - level) / 2.0
    return max(0.0, tail * (count + 1) / count - 1.0 / count), min(1.0, (1.0 - tail) * (count + 1) / count)


def intervals(
    predicted: Figures,
    residuals: Residuals,
    seeds: Sequence[Figures] = (),
    queued: tuple[Figures, Figures] | None = None,
    model: str | None = None,
    stand_in: bool = False,
) -> dict[str, Interval]:
    """The interval of each figure that has one; `queued` are the figures with shorter and with longer steps."""
    found = {
        metric: interval(
            metric,
            value,
            residuals,
            [other[metric] for other in seeds if metric in other],
            None if queued is None else Queued(*(side.get(metric, value) for side in queued)),
            model,
            stand_in,
        )
        for metric, value in predicted.items()
    }
    return {metric: bounds for metric, bounds in found.items() if bounds is not None}
