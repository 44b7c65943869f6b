"""Where the time of typical and of slow requests goes: mean waterfalls of the requests around a percentile of E2E."""

from dataclasses import dataclass

import numpy as np

from simkit.metrics.latency import finished_latencies
from simkit.metrics.result import WATERFALL, RequestColumns

PERCENTILES = (50, 90, 99)
AROUND = 0.01  # share of the requests on each side of the percentile that are averaged


@dataclass(frozen=True)
class Waterfall:
    """The mean of the requests around one percentile; the parts sum to the E2E."""

    percentile: int
    requests: int
    e2e_s: float
    parts_s: dict[str, float]  # front_end, queue, prefill, decode, stalled, preempted, host, transfer


def waterfalls(requests: RequestColumns) -> list[Waterfall]:
    """Of p50, p90 and p99; [] where nothing finished."""
    known = finished_latencies(requests)
    n = len(known.row)
    if not n:
        return []
    order = known.row[np.argsort(known.e2e_s, kind="stable")]
    found = []
    for percentile in PERCENTILES:
        middle = percentile / 100 * (n - 1)
        low, high = int(max(0, middle - AROUND * n)), int(min(n - 1, middle + AROUND * n))
        rows = order[low : high + 1]
        parts = {name.removesuffix("_ns"): float(getattr(requests, name)[rows].mean()) / 1e9 for name in WATERFALL}
        found.append(Waterfall(percentile, len(rows), sum(parts.values()), parts))
    return found
