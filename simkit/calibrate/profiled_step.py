"""What is needed to time the parts of one deployment's steps from a profile."""

from typing import NamedTuple

import numpy as np

from simkit.calibrate.operator_model import OperatorModel
from simkit.calibrate.operator_sizes import F64
from simkit.calibrate.provenance import Tag, Times, tagged
from simkit.models.architecture import Architecture
from simkit.models.device import Device
from simkit.models.layout import Layout
from simkit.models.operators import Operator
from simkit.models.precision import Precision
from simkit.models.step_law import StepLaw

# tables do not tell 16-bit types apart: tensor units run both at one rate
KV_DTYPE: dict[Precision, str] = {"fp8": "fp8", "int8": "fp8"}


class ProfiledStep(NamedTuple):
    """A deployment and the model of its operators."""

    model: OperatorModel
    arch: Architecture
    device: Device
    layout: Layout
    weights: Precision | None  # None: as published
    kv: Precision
    law: StepLaw  # for what the profile lacks

    def by_law(self, operator: Operator) -> Times:
        """An operator that was not timed, all its launches: assumed."""
        return tagged(self.law.operator_ns(operator), Tag.ASSUMED)


def or_nothing(times: Times, work: F64) -> Times:
    """The times where there is work, 0 elsewhere."""
    return Times(np.where(work > 0, times.ns, 0.0), times.tag)
