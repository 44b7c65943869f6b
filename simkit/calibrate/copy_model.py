"""Copies between host and device, or within the device: a line over bytes for each direction."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.provenance import Times
from simkit.calibrate.size_line import SizeLine, size_line

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class CopyModel:
    """Times of one copy by direction, as `profile_tables.COPIES` names them."""

    lines: dict[str, SizeLine]

    def ns(self, direction: str, copied_bytes: F64) -> Times:
        """Times of copies of so many bytes (f64[..]); KeyError for a direction that was not timed."""
        return self.lines[direction].at(copied_bytes)


def fit_copies(frame: "pd.DataFrame") -> CopyModel:
    """The model of a profile's `copy` table."""
    return CopyModel(
        {
            str(direction): size_line(part["bytes"].to_numpy(np.float64), part["median_ns"].to_numpy(np.float64))
            for direction, part in frame.groupby("direction")
        }
    )
