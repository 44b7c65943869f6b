"""The roofline that a table of measurements draws by itself: the best rates it reached, with a rounded corner.

Models of operators predict the ratio of a time to this line, which varies slowly with size, where the time itself
spans six orders of magnitude. The line comes from the measurements, so a device without a datasheet has one too.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.models.efficiency import CORNER

F64 = NDArray[np.float64]


class Ceilings(NamedTuple):
    """What was reached at best, by one kind of kernel."""

    flops_per_ns: float
    bytes_per_ns: float
    fixed_ns: float  # the shortest time of all

    def line_ns(self, flops: F64, moved_bytes: F64) -> F64:
        """The time of work at these rates: fixed + (compute^q + memory^q)^(1/q), q as in models/efficiency.py."""
        compute, memory = flops / self.flops_per_ns, moved_bytes / self.bytes_per_ns
        line: F64 = self.fixed_ns + np.power(compute**CORNER + memory**CORNER, 1.0 / CORNER)
        return line


def ceilings(flops: F64, moved_bytes: F64, ns: F64) -> Ceilings:
    """The ceilings of measured times (f64[n], n >= 1) of so much work each."""
    return Ceilings(
        flops_per_ns=max(float((flops / ns).max()), 1e-9),
        bytes_per_ns=max(float((moved_bytes / ns).max()), 1e-9),
        fixed_ns=float(ns.min()),
    )
