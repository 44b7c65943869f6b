"""How much of every entry of a deployment's step tables is how well known."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

# the first axis of all arrays below, best known first
KNOWN = ("measured", "interpolated", "extrapolated", "assumed")


class TableShares(NamedTuple):
    """The parts of `StepTables`' entries, ns; each sums to the table's over its first axis, [len(KNOWN), ...]."""

    linear_ns: F64
    sample_ns: F64
    host_ns: F64
    decode_ns: F64
    decode_window_ns: F64
    prefill_ns: F64
