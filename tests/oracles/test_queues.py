"""Closed forms of queueing theory: one request at a time, service as we choose it.

With one running request, a budget above any prompt and a step time proportional to tokens, the replica is a single
server whose service time is its prompt's length.
"""

import numpy as np
import pytest
from scipy import stats

from simkit.engine.oracles import serve
from simkit.metrics.result import RunResult
from simkit.metrics.saturation import saturation

REPLICATIONS = 20
REQUESTS = 20_000


def mean_wait_s(result: RunResult) -> float:
    """Mean wait after the first tenth, in which the queue fills from empty."""
    return float(result.requests.queue_ns[REQUESTS // 10 :].mean()) / 1e9


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize(("service", "factor"), [("exponential", 1.0), ("constant", 0.5)])
def test_mean_wait_matches_theory(load: float, service: str, factor: float) -> None:
    """M/M/1: rho / (1 - rho); M/D/1: half of it (Pollaczek-Khinchine), in service times."""
    waits = [mean_wait_s(serve(load, service, seed, REQUESTS)) for seed in range(REPLICATIONS)]
    expected = factor * load / (1 - load)
    half_width = stats.t.ppf(0.995, REPLICATIONS - 1) * np.std(waits, ddof=1) / np.sqrt(REPLICATIONS)
    assert abs(np.mean(waits) - expected) <= half_width
    # an interval that says nothing would hold anything
    assert half_width < 0.1 * expected


@pytest.mark.parametrize(("service", "residual_s"), [("exponential", 1.0), ("constant", 0.5)])
def test_littles_law_holds_on_the_time_series(service: str, residual_s: float) -> None:
    """The integral of the number in the system is the sum of the times in it.

    The series sees an arrival when the step under way has ended: with probability rho there is one, and what is left of
    it is E[S^2] / 2 E[S] on average (renewal theory), which the integral lacks.
    """
    result = serve(0.8, service, 1, REQUESTS)
    requests = result.requests
    integral_s = float((result.series.running + result.series.waiting).sum()) * result.series.bucket_ns / 1e9
    total_s = float((requests.finish_ns - requests.arrival_ns).sum()) / 1e9
    assert (total_s - integral_s) / REQUESTS == pytest.approx(0.8 * residual_s, rel=0.05)
    assert result.blocks == result.blocks_free_at_end


@pytest.mark.parametrize("service", ["exponential", "constant"])
@pytest.mark.parametrize("seed", range(10))
def test_saturation_fires_at_105_percent_and_is_silent_at_90(service: str, seed: int) -> None:
    assert saturation(serve(1.05, service, seed, REQUESTS).requests).saturated
    assert not saturation(serve(0.9, service, seed, REQUESTS).requests).saturated
