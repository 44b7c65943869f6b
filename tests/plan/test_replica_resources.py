"""Shares of a replica's resources in use, against what its GPUs must compute, read and send."""

from dataclasses import replace

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, resolve
from simkit.models.layout import Layout, layer_kv_bytes_per_token
from simkit.models.operators import linear_operators
from simkit.plan.replica_resources import in_use, with_more
from simkit.plan.sweep import replay
from simkit.workloads.presets import preset
from simkit.workloads.workload import Workload

BASE = Deployment(model="llama-3.1-8b", device="h100")


def test_what_goes_between_nodes_is_counted_at_the_networks_speed() -> None:
    """A tensor group of 4 over nodes of 2: a ring's sums in a node, each part's with the other node (BlueConnect)."""
    spread = Layout(tensor=4, gpus_per_node=2, network_gb_per_s=12.5)
    spec = resolve(BASE.model_copy(update={"layout": spread}))
    result = replay(spec, preset("azure-conv-2023", requests=50, rate_per_s=2.0, seed=0))
    seconds = (result.end_ns - result.requests.arrival_ns[0]) / 1e9
    summed = result.computed_tokens * 4096 * 2 * (2 * 32 + 1)  # bytes of all sums of [tokens, hidden]
    used = in_use(spec, result)
    assert used["link"] == pytest.approx(2 * 1 / 2 * summed / seconds / spec.device.link_bytes_per_s, rel=1e-9)
    assert used["network"] == pytest.approx(2 * 1 / 2 * summed / 2 / seconds / 12.5e9, rel=1e-9)
    faster = with_more(spec, "network", 2.0)
    assert faster is not None
    assert np.all(faster.tables.linear_ns[1:] < spec.tables.linear_ns[1:])
    assert np.array_equal(faster.tables.decode_ns, spec.tables.decode_ns)


def test_shares_in_use_of_a_pipeline_are_of_one_of_its_stages() -> None:
    whole = resolve(BASE)
    halves = resolve(BASE.model_copy(update={"layout": Layout(pipeline=2)}))
    result = replay(whole, preset("azure-conv-2023", requests=50, rate_per_s=2.0, seed=0))
    alone, shared = in_use(whole, result), in_use(halves, result)
    for name in ("compute", "bandwidth"):
        assert shared[name] == pytest.approx(alone[name] / 2, rel=1e-9)  # type: ignore[operator]
    tokens = result.computed_tokens
    seconds = (result.end_ns - result.requests.arrival_ns[0]) / 1e9
    # one of the two sends hidden states and residuals of 4,096 bf16 values
    assert shared["link"] == pytest.approx(tokens * 2 * 4096 * 2 / 2 / seconds / halves.device.link_bytes_per_s)


def test_a_window_bounds_the_context_that_decodes_read() -> None:
    """8 tokens after a prompt of 20,000: a layer with a window of 1,024 reads 1,024 tokens each time."""
    spec = resolve(Deployment(model="gemma-3-12b", device="h100"))
    one = Workload("one", np.zeros(1, np.int64), np.array([20_000], np.int32), np.array([9], np.int32))
    short = replace(one, output_tokens=np.array([1], np.int32))
    kinds_of = spec.architecture.kinds.items()
    reads = sum(
        count
        * layer_kv_bytes_per_token(layer, 1, "bf16")
        * sum(min(20_000 + i, layer.attention.window_tokens or 10**9) for i in range(1, 9))
        for layer, count in kinds_of
    )
    moved = [
        in_use(spec, result)["bandwidth"] * (result.end_ns / 1e9) for result in (replay(spec, one), replay(spec, short))
    ]
    steps = 8 * sum(float(o.memory_bytes[0]) for o in linear_operators(spec.architecture, Layout(), np.ones(1)))
    assert (moved[0] - moved[1]) * spec.device.bandwidth_bytes_per_s - steps == pytest.approx(reads, rel=0.01)
