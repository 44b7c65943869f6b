"""The saturation verdict on the real engine, around a capacity found by serving everything at once."""

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, resolve
from simkit.metrics.saturation import saturation
from simkit.plan.capacity import throughput_bound
from simkit.plan.sweep import replay
from simkit.workloads.presets import preset
from simkit.workloads.transform import rate_to

REQUESTS = 12_000


@pytest.mark.parametrize("seed", range(3))
def test_the_engine_is_saturated_at_105_percent_and_not_at_90(seed: int) -> None:
    spec = resolve(Deployment(model="llama-3.1-8b", device="l4", engine={"max_model_len": 8192}))
    workload = preset("azure-conv-2023", requests=REQUESTS, seed=seed, arrivals="poisson")
    # what is served a second with everything at hand, less the start and the end with small batches, is capacity
    capacity = throughput_bound(spec, workload)
    verdicts = [saturation(replay(spec, rate_to(workload, load * capacity)).requests) for load in (0.9, 1.05)]
    assert [verdict.saturated for verdict in verdicts] == [False, True]


def test_a_burst_and_a_trickle_are_no_saturation() -> None:
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    burst = preset("azure-conv-2023", requests=10, seed=1)
    verdict = saturation(replay(spec, burst).requests)
    assert not verdict.saturated
    assert not verdict.conclusive


def test_a_rate_that_drifts_up_and_down_is_no_saturation() -> None:
    """A day's wave below capacity: the number in the system follows it, and does not pile up."""
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    workload = preset("azure-conv-2023", requests=10_000, seed=2, arrivals="poisson", rate_per_s=8.0)
    time = workload.arrival_us / workload.arrival_us[-1]
    waved = time + 0.05 * np.sin(2 * np.pi * time)
    stretched = np.rint(np.sort(waved) * workload.arrival_us[-1]).astype(np.int64)
    drifting = workload.__class__(**{**vars(workload), "arrival_us": stretched})
    assert not saturation(replay(spec, drifting).requests).saturated
