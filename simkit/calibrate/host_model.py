"""CPU time that the device waits for between two steps, of making a step's inputs, and of a launch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.nonnegative import nonnegative_least_squares
from simkit.calibrate.provenance import Tag, Times

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]

FEWEST_PREPARED = 3


class Prepare(NamedTuple):
    """Making a step's inputs: step + request x requests + token x tokens, ns."""

    step_ns: float
    request_ns: float
    token_ns: float

    def ns(self, requests: F64, tokens: F64) -> F64:
        """Times of steps of so many requests and tokens (f64[..] each)."""
        line: F64 = self.step_ns + self.request_ns * np.asarray(requests) + self.token_ns * np.asarray(tokens)
        return np.where(np.asarray(requests) > 0, line, 0.0)


@dataclass(frozen=True)
class HostModel:
    """step + request x requests; what was not timed is None."""

    step_ns: float | None
    request_ns: float
    launch_ns: float | None
    most_requests: int
    prepare: Prepare | None = None

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
    prepare = fit_prepare(frame)
    if steps.empty:
        return HostModel(None, 0.0, launch, 0, prepare)
    step, request = _line(steps, ["requests"])
    return HostModel(step, request, launch, int(steps["requests"].max()), prepare)


def fit_prepare(frame: "pd.DataFrame") -> Prepare | None:
    """What a `host` table says of making a step's inputs; None if hardly anything."""
    rows = frame[frame["part"] == "prepare"]
    return Prepare(*_line(rows, ["requests", "tokens"])) if len(rows) >= FEWEST_PREPARED else None


def _line(rows: "pd.DataFrame", sizes: list[str]) -> list[float]:
    """A constant and the cost of each size."""
    ns = rows["median_ns"].to_numpy(np.float64)
    columns = [np.ones(len(ns)), *(rows[name].to_numpy(np.float64) for name in sizes)]
    prices = nonnegative_least_squares(np.stack(columns, axis=1) / ns[:, None], np.ones(len(ns)))
    return [float(price) for price in prices]
