"""CPU time that the device waits for between two steps, and the CPU time of a launch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.nonnegative import nonnegative_least_squares
from simkit.calibrate.provenance import Tag, Times

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class HostModel:
    """step + request x requests; either part None where it was not timed."""

    step_ns: float | None
    request_ns: float
    launch_ns: float | None
    most_requests: int

    def ns(self, requests: F64) -> Times:
        """Times of steps of so many requests (f64[..]); ValueError if no step was timed."""
        if self.step_ns is None:
            raise ValueError("no host step was timed")
        asked = np.asarray(requests, np.float64)
        tag = np.where(asked <= self.most_requests, Tag.INTERPOLATED, Tag.EXTRAPOLATED).astype(np.int8)
        return Times(np.where(asked > 0, self.step_ns + self.request_ns * asked, 0.0), tag)


def fit_host(frame: "pd.DataFrame") -> HostModel:
    """The model of a profile's `host` table: least squares of the relative error, no negative cost."""
    steps = frame[frame["part"] == "step"]
    launches = frame[frame["part"] == "launch"]["median_ns"]
    launch = float(launches.median()) if len(launches) else None
    if steps.empty:
        return HostModel(None, 0.0, launch, 0)
    requests, ns = steps["requests"].to_numpy(np.float64), steps["median_ns"].to_numpy(np.float64)
    columns = np.stack([np.ones(len(ns)), requests], axis=1) / ns[:, None]
    step, request = nonnegative_least_squares(columns, np.ones(len(ns)))
    return HostModel(float(step), float(request), launch, int(requests.max()))
