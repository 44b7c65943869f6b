"""The rate found against closed forms and against a search of every rate."""

import math
from dataclasses import replace

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.engine.state import Limits
from simkit.errors import InputError
from simkit.metrics.slo import promise
from simkit.models.front_end import NO_FRONT_END
from simkit.models.steptables import constant_tables
from simkit.plan.capacity import PRECISION, find_capacity, probe_of, throughput_bound
from simkit.plan.observation import observe
from simkit.plan.sweep import mean_rate, replay
from simkit.workloads.presets import preset
from simkit.workloads.workload import Workload


@pytest.fixture(scope="module")
def h100() -> ReplicaSpec:
    return resolve(Deployment(model="llama-3.1-8b", device="h100"))


def one_at_a_time(spec: ReplicaSpec) -> tuple[ReplicaSpec, Workload]:
    """A server of one second a request, and Poisson arrivals."""
    limits = Limits(1000, 1, 1002, 16, 0, False, True, True, False, 0, False, 0, True, True, 1, 1)
    tables = constant_tables(1000, 1, token_ns=1e6)
    single = replace(spec, limits=limits, tables=tables, num_blocks=100, front_end=NO_FRONT_END)
    n = 30_000
    arrivals = np.cumsum(np.random.default_rng(3).exponential(1e6, n)).astype(np.int64)
    return single, Workload("M/D/1", arrivals, np.full(n, 1000, dtype=np.int32), np.ones(n, dtype=np.int32))


@pytest.mark.parametrize("wait_s", [0.5, 2.0])
def test_rate_at_a_mean_wait_is_pollaczek_khinchines(h100: ReplicaSpec, wait_s: float) -> None:
    """M/D/1: wait = rho / 2 (1 - rho), so rho = 2 wait / (1 + 2 wait)."""
    spec, workload = one_at_a_time(h100)
    found = find_capacity(spec, workload, {"queue_mean_s": wait_s})
    assert found.rate_per_s == pytest.approx(2 * wait_s / (1 + 2 * wait_s), rel=0.03)
    assert found.binding == "queue_mean_s"
    assert found.bound_per_s == pytest.approx(1.0, rel=1e-6)


def test_rate_found_holds_and_one_just_above_does_not(h100: ReplicaSpec) -> None:
    workload = preset("azure-conv-2023", requests=3000, seed=0, arrivals="poisson")
    slo = {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05}
    found = find_capacity(h100, workload, slo)
    assert found.rate_per_s is not None
    own = mean_rate(workload)
    for factor, holds in ((1.0, True), (1 + 2 * PRECISION, False)):
        rate = found.rate_per_s * factor
        assert probe_of(replay(h100, workload, rate / own), rate / own, rate, slo).holds is holds
    assert found.rate_per_s < found.bound_per_s


@pytest.mark.parametrize("engine", [{}, {"speculative_tokens": 3, "acceptance": 0.5, "async_scheduling": False}])
def test_the_mean_gap_leaves_the_warm_up_out_as_other_latencies_do(engine: dict[str, object]) -> None:
    """The engine's own histogram has the gaps of all: those of the warm-up and of the others add up to it."""
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100", engine=EngineSettings.model_validate(engine)))
    run = replay(spec, preset("azure-conv-2023", requests=1000, seed=1, arrivals="poisson", rate_per_s=30))
    first = np.arange(1000) < 100
    early, late = (
        observe(run.requests, [run], promise({}), rows=rows).figures["itl_mean_s"] for rows in (first, ~first)
    )
    assert observe(run.requests, [run], promise({})).figures["itl_mean_s"] == late
    gaps = run.requests.generated_tokens - 1
    assert gaps.sum() == run.itl.count.sum()
    total_s = early * gaps[first].sum() + late * gaps[~first].sum()
    assert total_s == pytest.approx(run.itl.mean() / 1e9 * gaps.sum(), rel=1e-12)
    assert early != late


def test_slower_steps_hold_less(h100: ReplicaSpec) -> None:
    workload = preset("azure-conv-2023", requests=2000, seed=0, arrivals="poisson")
    rates = [find_capacity(h100, workload, {"tpot_p99_s": 0.05}, factor).rate_per_s or 0.0 for factor in (0.9, 1, 1.1)]
    assert rates == sorted(rates, reverse=True)


def test_a_target_that_no_rate_meets_is_named(h100: ReplicaSpec) -> None:
    workload = preset("azure-conv-2023", requests=300, seed=0, arrivals="poisson")
    found = find_capacity(h100, workload, {"ttft_p99_s": 10.0, "tpot_p50_s": 1e-4})
    assert found.rate_per_s is None
    assert found.binding == "tpot_p50_s"


def test_a_rate_is_promised_to_all_or_not_at_all(h100: ReplicaSpec) -> None:
    """docs/plan.md: and always none is longer than the context. One of 300 is, by a token."""
    workload = preset("azure-conv-2023", requests=300, seed=0, arrivals="poisson")
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    slo = {"ttft_p99_s": 100.0}
    short, enough = (replace(h100, limits=h100.limits._replace(max_model_len=n)) for n in (longest - 1, longest))
    refused = find_capacity(short, workload, slo)
    assert refused.rate_per_s is None
    assert refused.binding == "rejected"
    assert refused.probes[0].missed == ("rejected",)
    assert find_capacity(enough, workload, slo).rate_per_s is not None


def test_nothing_to_search_is_an_error(h100: ReplicaSpec) -> None:
    workload = preset("azure-conv-2023", requests=30, seed=0)
    with pytest.raises(InputError, match="no target"):
        find_capacity(h100, workload, {})
    at_once = replace(workload, arrival_us=np.zeros_like(workload.arrival_us))
    with pytest.raises(InputError, match="at once"):
        find_capacity(h100, at_once, {"ttft_p99_s": 1.0})
    endless = replace(workload, prompt_tokens=np.full(30, 10**6, dtype=np.int32))
    with pytest.raises(InputError, match="max_model_len"):
        throughput_bound(h100, endless)
    assert math.isnan(mean_rate(at_once))
