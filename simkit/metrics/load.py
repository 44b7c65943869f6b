"""One workload at several loads: the points of a latency-against-load curve."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadPoint:
    """One replay of the workload at another rate. A percentile that is not known is NaN."""

    load: float  # multiple of the workload's own rate
    rate_per_s: float  # requests a second
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    e2e_p50_s: float
    e2e_p99_s: float
    goodput_fraction: float  # share of requests that met all targets
    saturated: bool  # the queue grew to the end: the percentiles above only say how long the replay was
