"""How far a deployment's step times may be off as a whole: from errors that were measured, wherever there are any."""

import math
from functools import cache
from pathlib import Path

import numpy as np

from simkit.calibrate.operator_errors import held_out_predictions
from simkit.calibrate.operator_profile import profile_folder, read_operator_profile
from simkit.calibrate.profile import read_profile
from simkit.calibrate.profile_sources import shipped_profiles
from simkit.cli.config import Config
from simkit.engine.deployment import ReplicaSpec
from simkit.fidelity.intervals import STAND_IN_SPREAD, shipped_residuals
from simkit.models.kernel_laws import laws_of
from simkit.models.roofline import PROVENANCE as ROOFLINE
from simkit.plan.confidence import SPREAD_OF_ROOFLINE, StepTimeError
from simkit.plan.unit import Group, Unit


def step_time_error(unit: Unit, config: Config, stated: float | None) -> StepTimeError:
    """The spread that a user states, else what is known of step times that come from where this unit's come from.

    A profile has its own held-out error. Laws have the ITL of the measured runs, each predicted by constants fitted
    without its model; a device that only lends from another's tables has the spread of such loans beside it.
    """
    if stated is not None:
        return StepTimeError(stated, "as stated")
    spec = unit.decode if isinstance(unit, Group) else unit
    if config.profile is not None:
        return _of_profile(config.profile)
    if spec.provenance == ROOFLINE:
        return StepTimeError(SPREAD_OF_ROOFLINE, f"assumed for {ROOFLINE} step times")
    return _of_laws(spec)


def _of_laws(spec: ReplicaSpec) -> StepTimeError:
    off = shipped_residuals().by_metric["itl_mean"]
    off = off[np.isfinite(off)]
    spread = math.sqrt(float(np.mean(off**2)))
    source = f"mean ITL of {len(off)} measured runs, each predicted without its model"
    laws = laws_of(spec.device)
    if laws is None or laws[1] == spec.device.name:
        return StepTimeError(spread, source)
    lent = f"and what {laws[1]}'s kernels may be off for {spec.device.name}"
    return StepTimeError(math.hypot(spread, STAND_IN_SPREAD), f"{source}, {lent}")


@cache
def _of_profile(named: Path) -> StepTimeError:
    """A whole-step profile: its worst fold, whose errors do not average out; one of operators: by held-out time."""
    path = named if named.exists() else shipped_profiles().get(str(named), named)
    folder = profile_folder(path)
    if folder is None:
        worst = max((abs(math.log1p(part.drift)) for part in read_profile(path).held_out), default=0.0)
        return StepTimeError(worst, f"the worst fold that {path.name} was not fitted on")
    off = total = 0.0
    for predicted in held_out_predictions(read_operator_profile(folder)):
        measured = predicted.rows["median_ns"].to_numpy(np.float64)
        off += float(np.abs(predicted.times.ns - measured).sum())
        total += float(measured.sum())
    if total == 0.0:
        return StepTimeError(SPREAD_OF_ROOFLINE, f"assumed, for {path.name} has nothing held out")
    return StepTimeError(off / total, f"mean error of the operators that {path.name} was not fitted on")
