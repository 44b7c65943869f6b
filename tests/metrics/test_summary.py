"""Percentiles, goodput and histograms against their definitions, worked out by numpy or by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkit.engine.record import BINS, bin_edges, bin_of
from simkit.engine.simulate import simulate
from simkit.engine.state import Limits
from simkit.errors import InputError
from simkit.metrics.latency import finished_latencies
from simkit.metrics.result import Histogram, RunResult, Status
from simkit.metrics.slo import targets
from simkit.metrics.summary import goodput, statistics, summarize
from simkit.models.steptables import constant_tables
from simkit.workloads.workload import Workload

LIMITS = Limits(64, 4, 256, 16, 0, False, True, True, False, 0, False, 0, True, True, 1, 1)


def run(arrival_us: list[int], prompts: list[int], outputs: list[int]) -> RunResult:
    """Steps of 1 ms each."""
    workload = Workload(
        "by hand", np.array(arrival_us), np.array(prompts, dtype=np.int32), np.array(outputs, dtype=np.int32)
    )
    return simulate(workload, LIMITS, constant_tables(64, 4, step_ns=1e6), 200)


def test_latencies_of_a_run_worked_by_hand() -> None:
    # request 0: prompt at 0..1 ms, tokens at 1, 2, 3 ms; request 1 arrives at 0.5 ms, enters the step at 1 ms
    result = run([0, 500], [10, 10], [3, 1])
    latencies = finished_latencies(result.requests)
    assert latencies.ttft_s.tolist() == pytest.approx([1e-3, 1.5e-3])
    assert latencies.tpot_s[0] == pytest.approx(1e-3)
    assert np.isnan(latencies.tpot_s[1])
    assert latencies.e2e_s.tolist() == pytest.approx([3e-3, 1.5e-3])
    assert latencies.ntpot_s.tolist() == pytest.approx([1e-3, 1.5e-3])
    assert latencies.queue_s.tolist() == pytest.approx([0.0, 0.5e-3])
    summary = summarize(result, {"e2e_p99_s": 2e-3})
    assert summary["requests"] == {"arrived": 2, "unfinished": 0, "finished": 2, "rejected": 0}
    assert summary["goodput"]["requests"] == 1  # type: ignore[index]
    assert result.itl.mean() == pytest.approx(1e6)


def test_a_prompt_too_long_is_rejected_and_meets_no_target() -> None:
    result = run([0, 0], [10, 250], [3, 100])
    good = goodput(result, finished_latencies(result.requests), targets({"ttft_p99_s": 1.0}))
    assert summarize(result)["requests"] == {"arrived": 2, "unfinished": 0, "finished": 1, "rejected": 1}
    assert good["fraction"] == 0.5


def test_a_prompt_that_nobody_looked_up_is_no_miss_of_the_prefix_cache() -> None:
    result = run([0, 500, 900], [10, 20, 40], [3, 1, 1])
    requests = replace(
        result.requests,
        hit_tokens=np.array([0, 5, 0], dtype=np.int32),
        status=np.array([Status.FINISHED, Status.FINISHED, Status.TIMED_OUT], dtype=np.int8),
        scheduled_ns=np.array([0, *result.requests.scheduled_ns[1:2], 0]),
        generated_tokens=np.array([3, 1, 0], dtype=np.int32),
    )
    summary = summarize(replace(result, requests=requests))
    assert summary["prefix_cache"] == {"hit_tokens": 5, "hit_rate": 5 / 30}


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200))
def test_statistics_are_numpys(values: list[float]) -> None:
    found = statistics(np.array([*values, np.nan]))
    assert found["p90"] == pytest.approx(np.percentile(values, 90))
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["max"] == max(values)
    assert statistics(np.array([np.nan]))["p50"] is None


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_histogram_quantiles_are_within_a_bin(values: list[int], q: float) -> None:
    counts = np.zeros(BINS, dtype=np.int64)
    for value in values:
        counts[bin_of.py_func(value)] += 1
    histogram = Histogram(bin_edges(), counts, sum(values), max(values))
    ordered = sorted(values)
    below = ordered[max(0, int(np.ceil(q * len(values))) - 1)]
    assert histogram.quantile(q) == pytest.approx(below, rel=1 / 64, abs=1.0)
    assert histogram.mean() == pytest.approx(np.mean(values))


@pytest.mark.parametrize("value", range(6))
def test_quantiles_of_small_whole_numbers_are_exact(value: int) -> None:
    """Tokens that one check gives follow one another after 0 ns, not after a fraction of one."""
    counts = np.zeros(BINS, dtype=np.int64)
    counts[bin_of.py_func(value)] = 9
    counts[bin_of.py_func(1000)] = 1
    assert Histogram(bin_edges(), counts, 9 * value + 1000, 1000).quantile(0.5) == value


@given(st.integers(0, 2**62))
def test_every_value_is_in_its_bin(value: int) -> None:
    edges = bin_edges()
    index = bin_of.py_func(value)
    assert edges[index] <= value
    assert index + 1 == BINS or value < edges[index + 1]


@pytest.mark.parametrize("key", ["ttft_p99", "ttft_p9x_s", "latency_p99_s", "ttft_s"])
def test_an_unknown_target_is_an_error(key: str) -> None:
    with pytest.raises(InputError, match=key):
        targets({key: 1.0})
