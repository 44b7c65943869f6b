"""Closed forms of queueing theory: one request at a time, service as we choose it.

With one running request, a budget above any prompt and a step time proportional to tokens, the replica is a single
server whose service time is its prompt's length.
"""

import numpy as np
import pytest
from scipy import stats

from simkit.engine.simulate import simulate
from simkit.engine.state import Limits
from simkit.metrics.result import RunResult
from simkit.metrics.saturation import saturation
from simkit.models.steptables import constant_tables
from simkit.workloads.workload import Workload

MEAN_TOKENS = 10_000  # a service time of 1 s at 100 us a token: rounding to whole tokens is a 1e-4 of it
LONGEST = 400_000  # 40 mean service times: exp(-40) of exponential ones are longer
TOKEN_NS = 100_000.0
REPLICATIONS = 20
REQUESTS = 20_000

LIMITS = Limits(
    max_num_batched_tokens=LONGEST,
    max_running=1,
    max_model_len=LONGEST + 2,
    block_size=1024,
    long_prefill_token_threshold=0,
    adaptive_long_prefill=False,
    lone_request_uncapped=True,
    chunked_prefill=True,
    prefix_caching=False,
    ordering=0,
    preemptive=False,
    watermark_blocks=0,
    reserve_full_isl=True,
    uncached_free_to_front=True,
    content_span=1,
    pipeline_depth=1,
)
BLOCKS = 2 + (LONGEST + 2) // 1024
TABLES = constant_tables(LONGEST, 1, token_ns=TOKEN_NS)


def serve(load: float, service: str, seed: int, requests: int = REQUESTS) -> RunResult:
    """One queue at `load`; service times of mean 1 s, exponential or constant."""
    arrivals, lengths = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    arrival_us = np.cumsum(arrivals.exponential(1e6 / load, requests)).astype(np.int64)
    tokens = np.full(requests, MEAN_TOKENS)
    if service == "exponential":
        tokens = np.clip(np.rint(lengths.exponential(MEAN_TOKENS, requests)), 1, LONGEST).astype(np.int64)
    ones = np.ones(requests, dtype=np.int32)
    return simulate(Workload("queue", arrival_us, tokens.astype(np.int32), ones), LIMITS, TABLES, BLOCKS)


def mean_wait_s(result: RunResult) -> float:
    """Mean wait after the first tenth, in which the queue fills from empty."""
    return float(result.requests.queue_ns[REQUESTS // 10 :].mean()) / 1e9


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize(("service", "factor"), [("exponential", 1.0), ("constant", 0.5)])
def test_mean_wait_matches_theory(load: float, service: str, factor: float) -> None:
    """M/M/1: rho / (1 - rho); M/D/1: half of it (Pollaczek-Khinchine), in service times."""
    waits = [mean_wait_s(serve(load, service, seed)) for seed in range(REPLICATIONS)]
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
    result = serve(0.8, service, seed=1)
    requests = result.requests
    integral_s = float((result.series.running + result.series.waiting).sum()) * result.series.bucket_ns / 1e9
    total_s = float((requests.finish_ns - requests.arrival_ns).sum()) / 1e9
    assert (total_s - integral_s) / REQUESTS == pytest.approx(0.8 * residual_s, rel=0.05)
    assert result.blocks == result.blocks_free_at_end


@pytest.mark.parametrize("service", ["exponential", "constant"])
@pytest.mark.parametrize("seed", range(10))
def test_saturation_fires_at_105_percent_and_is_silent_at_90(service: str, seed: int) -> None:
    assert saturation(serve(1.05, service, seed).requests).saturated
    assert not saturation(serve(0.9, service, seed).requests).saturated
