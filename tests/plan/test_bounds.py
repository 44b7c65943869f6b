"""Bounds hold whatever the schedule: no replay does better than what they say."""

from collections.abc import Callable

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.metrics.slo import promise
from simkit.models.layout import Layout
from simkit.plan.bounds import bounds
from simkit.plan.capacity import throughput_bound
from simkit.plan.fleet import replay_share
from simkit.workloads.presets import preset
from simkit.workloads.workload import Workload

DEPLOYMENTS = [
    Deployment(model="llama-3.1-8b", device="h100"),
    Deployment(model="llama-3.1-8b", device="l40s", kv="fp8"),
    Deployment(model="qwen3-14b", device="a100", layout=Layout(tensor=2)),
    Deployment(model="llama-3.1-8b", device="l4", weights="fp8", engine=EngineSettings(max_model_len=16384)),
    Deployment(model="llama-3.1-8b", device="h100", engine=EngineSettings(discipline="sarathi", max_num_seqs=32)),
    Deployment(model="qwen3-14b", device="a100", layout=Layout(pipeline=2)),
]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: f"{d.device}-{d.engine.discipline}")
def test_no_replay_beats_its_bounds(deployment: Deployment, chat: Workload) -> None:
    spec = resolve(deployment)
    slo = promise({"ttft_p50_s": 9.0, "ttft_mean_s": 9.0, "tpot_p50_s": 9.0, "e2e_mean_s": 99.0, "ntpot_p90_s": 9.0})
    known = bounds(spec, chat, slo)
    assert known.rate_per_s > throughput_bound(spec, chat)
    alone = replay_share(spec, chat, 1, 0.02 * known.rate_per_s, slo)
    for key, floor in known.floors_s.items():
        assert 0 < floor < alone.figures[key]


def test_kv_blocks_bound_what_few_blocks_can_hold(chat: Workload) -> None:
    """Long answers over a small cache: blocks held times time cannot exceed the blocks there are (Little's law)."""
    small = resolve(Deployment(model="llama-3.1-8b", device="h100", engine=EngineSettings(max_model_len=4096)))
    small = resolve(
        small.deployment.model_copy(
            update={"engine": EngineSettings(max_model_len=4096, num_gpu_blocks_override=300, max_num_seqs=256)}
        )
    )
    n = 400
    long = Workload(
        "long", np.arange(n, dtype=np.int64) * 1000, np.full(n, 1000, np.int32), np.full(n, 1000, dtype=np.int32)
    )
    known = bounds(small, long, promise({"ttft_p99_s": 1.0}))
    assert known.limited_by == "KV"
    assert throughput_bound(small, long) < known.rate_per_s


def test_found_prefixes_are_not_counted_as_work() -> None:
    shared = preset("mooncake-conversation", requests=500, rate_per_s=1.0, seed=0)
    assert shared.prefixes is not None
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    slo = promise({"ttft_p99_s": 1.0})
    with_cache = bounds(spec, shared, slo)
    off = resolve(spec.deployment.model_copy(update={"engine": EngineSettings(enable_prefix_caching=False)}))
    without = bounds(off, shared, slo)
    assert with_cache.limits_per_s["compute"] > without.limits_per_s["compute"] > throughput_bound(off, shared)
    assert with_cache.limits_per_s["KV"] == float("inf")


def test_a_single_server_is_bounded_by_its_service_rate(
    single_server: ReplicaSpec, queue: Callable[[int, float, int, bool], Workload]
) -> None:
    found = bounds(single_server, queue(500, 0.5, 0, False), promise({"e2e_mean_s": 10.0}))
    assert found.limits_per_s["compute"] == pytest.approx(1.0, rel=1e-3)
