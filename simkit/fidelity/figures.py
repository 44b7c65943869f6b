"""The figures that are compared: what a client sees of a set of requests."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.metrics.latency import Latencies

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

COMPARED = ("itl_mean", "ttft_mean", "ttft_p90", "ttft_p99", "e2e_mean", "e2e_p90", "e2e_p99")
MEDIANS = ("itl_p50", "ttft_p50", "e2e_p50")  # known only where single requests were recorded
METRICS = (*COMPARED, *MEDIANS)
"""itl: (E2E - TTFT) / (output tokens - 1) of a request; then the mean or median over requests."""

Figures = dict[str, float]
"""ms by name of METRICS; what is not known is left out."""


class ClientLatencies(NamedTuple):
    """One entry a request, s, as its client sees it."""

    ttft_s: F64
    itl_s: F64  # NaN for a request of one token
    e2e_s: F64


def client_latencies(latencies: Latencies) -> ClientLatencies:
    """What inference-perf calls ITL is our TPOT."""
    return ClientLatencies(latencies.ttft_s, latencies.tpot_s, latencies.e2e_s)


def figures(latencies: ClientLatencies, which: Mask | None = None) -> Figures:
    """The figures of the requests named; empty if there are none."""
    ttft, itl, e2e = (values if which is None else values[which] for values in latencies)
    itl = itl[~np.isnan(itl)]
    found: Figures = {}
    for name, values in (("itl", itl), ("ttft", ttft), ("e2e", e2e)):
        if len(values) == 0:
            continue
        found[f"{name}_mean"] = float(values.mean()) * 1e3
        for percent in (50, 90, 99):
            found[f"{name}_p{percent}"] = float(np.percentile(values, percent)) * 1e3
    return {name: found[name] for name in METRICS if name in found}
