"""Which side of the knee a run stands on: does the number of requests in the system keep growing?

Beyond capacity, what arrives and is not served piles up: at a load of rho times the capacity the number in the system
grows by (rho - 1) / rho of the arrivals, without end, and any latency percentile only says how long the run was. Below
capacity the number goes up and down around a mean. The test is a regression of batch means of the number in the system
on time: batches are long enough to be nearly independent, so that the slope's t statistic means something.
"""

from dataclasses import dataclass

import numpy as np

from simkit.metrics.result import F64, I64, RequestColumns, Status

BATCHES = 10
WARM_UP = 0.2  # share of the arrival window left out: the system fills from empty
SAMPLES = 400  # of the number in the system, over the rest of the window
# 2 % of arrivals piling up is a load of 1.02 times capacity: what a run must be able to tell from none
LEAST_GROWTH = 0.02
# two-sided 1 % point of Student's t with 8 degrees of freedom is 3.36
LEAST_T = 3.36
# less than this many requests in the last tenth more than in the first is noise of single requests
LEAST_PILE = 3.0


@dataclass(frozen=True)
class Saturation:
    """The verdict on one run."""

    saturated: bool
    growth: float  # share of the arrivals that piles up; about 1 - capacity / load beyond capacity, about 0 below
    t: float  # the growth over its standard error
    conclusive: bool  # False: the run is too short against its own latencies to tell
    reason: str


def saturation(requests: RequestColumns) -> Saturation:
    """Judge a run by its requests' arrivals and ends."""
    served = requests.status != Status.REJECTED
    arrivals = requests.arrival_ns[served].astype(np.float64)
    if len(arrivals) < 2 * BATCHES or arrivals[-1] <= arrivals[0]:
        return Saturation(False, 0.0, 0.0, False, "too few arrivals to tell whether the queue grows")
    finished = requests.status == Status.FINISHED
    growth, t, pile = _trend(requests, arrivals)
    if growth > LEAST_GROWTH and t > LEAST_T and pile > LEAST_PILE:
        percent = f"{100 * growth:.1f} %"
        return Saturation(True, growth, t, True, f"{percent} of the requests that arrive pile up")
    lifetimes = (requests.finish_ns - requests.arrival_ns)[finished]
    # a run of less than five lifetimes has hardly left the time in which it fills
    if not len(lifetimes) or arrivals[-1] - arrivals[0] < 5 * float(np.median(lifetimes)):
        return Saturation(False, growth, t, False, "arrivals last less than 5 median E2E latencies: too short to tell")
    return Saturation(False, growth, t, True, "the number of requests in the system does not keep growing")


def _trend(requests: RequestColumns, arrivals: F64) -> tuple[float, float, float]:
    """Growth as a share of arrivals, its t statistic, and the growth in requests from the first to the last batch."""
    first, last = arrivals[0], arrivals[-1]
    start = first + WARM_UP * (last - first)
    times = np.linspace(start, last, SAMPLES)
    inside = in_system(requests, times.astype(np.int64))
    means = inside.reshape(BATCHES, -1).mean(axis=1)
    middle = times.reshape(BATCHES, -1).mean(axis=1)
    x = middle - middle.mean()
    slope = float((x * means).sum() / (x * x).sum())
    residual = means - means.mean() - slope * x
    error = float(np.sqrt((residual * residual).sum() / (BATCHES - 2) / (x * x).sum()))
    arriving = int(np.count_nonzero(arrivals > start)) / (last - start)
    pile = slope * float(middle[-1] - middle[0])
    t = slope / error if error > 0 else (np.inf if slope > 0 else 0.0)
    return slope / arriving, float(t), pile


def in_system(requests: RequestColumns, times_ns: I64) -> I64:
    """How many requests were in the system, arrived and not over, at each of the times."""
    served = requests.status != Status.REJECTED
    # whoever gave up has left too
    finished = ~np.isin(requests.status, (Status.UNFINISHED, Status.REJECTED))
    arrived = np.searchsorted(np.sort(requests.arrival_ns[served]), times_ns, side="right")
    left = np.searchsorted(np.sort(requests.finish_ns[finished]), times_ns, side="right")
    return (arrived - left).astype(np.int64)
