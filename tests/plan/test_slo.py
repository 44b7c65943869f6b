"""Promises: any percentile, limits of each request with the share that must meet them, goodput."""

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, resolve
from simkit.errors import InputError
from simkit.metrics.latency import finished_latencies
from simkit.metrics.slo import promise, quantile, targets
from simkit.metrics.summary import summarize
from simkit.plan.capacity import find_capacity
from simkit.plan.observation import observe
from simkit.plan.sweep import replay
from simkit.workloads.workload import Workload


@pytest.mark.parametrize(
    ("statistic", "share"),
    [("p50", 0.5), ("p5", 0.05), ("p99", 0.99), ("p999", 0.999), ("p9999", 0.9999), ("p975", 0.975), ("mean", None)],
)
def test_percentiles_by_name(statistic: str, share: float | None) -> None:
    assert quantile(statistic) == share


@pytest.mark.parametrize(
    ("slo", "said"),
    [
        ({"ttft_p0_s": 1.0}, "not a latency target"),
        ({"ttft_s": 1.0}, "attainment: 0.95"),
        ({"itl_s": 1.0, "attainment": 0.9}, "pooled over requests"),
        ({"attainment": 0.9}, "need limits"),
        ({"ttft_s": 1.0, "attainment": 95}, "attainment=95"),
        ({"ttft_s": 1.0, "goodput_per_s": -1.0}, "goodput_per_s=-1.0"),
        ({"atainment": 0.9}, "did you mean 'attainment'"),
    ],
)
def test_what_makes_no_promise_is_said(slo: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        promise(slo)


def test_limits_of_requests_are_no_targets_of_percentiles() -> None:
    both = promise({"ttft_s": 1.0, "tpot_p99_s": 0.05, "attainment": 0.95})
    assert [target.key for target in both.targets] == ["tpot_p99_s"]
    assert [limit.key for limit in both.limits] == ["ttft_s"]
    assert targets({"ttft_s": 1.0, "attainment": 0.9}) == []
    # without limits of their own, requests are held to those of the percentiles
    assert [limit.limit_s for limit in promise({"e2e_p90_s": 3.0, "attainment": 0.9}).limits] == [3.0]


def test_figures_are_numpys_percentiles_and_joint_attainment_is_counted_by_hand(chat: Workload) -> None:
    result = replay(resolve(Deployment(model="llama-3.1-8b", device="h100")), chat)
    slo = {"ttft_p973_s": 9.0, "ttft_s": 0.08, "tpot_s": 0.014, "attainment": 0.5}
    seen = observe(result.requests, [result], promise(slo))
    known = finished_latencies(result.requests)
    late = known.row >= 100
    assert seen.figures["ttft_p973_s"] == np.quantile(known.ttft_s[late], 0.973)
    good = [t <= 0.08 and not p > 0.014 for t, p in zip(known.ttft_s[late], known.tpot_s[late], strict=True)]
    assert seen.attained == sum(good) / len(good)
    assert 0 < seen.attained < 1
    summary = summarize(result, slo)
    latency = summary["latency_of_this_run_s"]
    assert isinstance(latency, dict)
    assert latency["ttft"]["p973"] == np.quantile(known.ttft_s, 0.973)


def test_attainment_bounds_the_rate_as_its_percentile_does(chat: Workload) -> None:
    """99 % of requests within a limit is the limit's p99, one metric alone."""
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    by_percentile = find_capacity(spec, chat, {"ttft_p99_s": 0.4}).rate_per_s
    by_share = find_capacity(spec, chat, {"ttft_s": 0.4, "attainment": 0.99}).rate_per_s
    assert by_share == pytest.approx(by_percentile, rel=0.02)
    with pytest.raises(InputError, match="goodput_per_s"):
        find_capacity(spec, chat, {"ttft_s": 0.4, "goodput_per_s": 3.0})
