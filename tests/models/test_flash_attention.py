"""What the longest context of a batch costs, against a chip whose programs share its memory, event by event."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.engine.simulate import simulate
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.flash_attention import TILE_NS, alone_ns, cuts_batches_alike
from simkit.models.layout import Layout
from simkit.models.steptables import constant_tables, grid_values, interpolate, uneven_ns
from simkit.workloads.workload import Workload

F64 = NDArray[np.float64]


def replica(device: str = "a100", **settings: object) -> ReplicaSpec:
    return resolve(Deployment(model="llama-3.1-8b", device=device, engine=EngineSettings(**settings)))


def test_whole_contexts_take_all_their_tiles() -> None:
    """8 KV heads x 22 requests are 176 programs, 81 % of the 216 an A100 holds; 32,000 tokens are 250 tiles."""
    table = alone_ns(load_model("llama-3.1-8b"), Layout(), load_device("a100"), 256, 32_000)
    assert interpolate(table, 22, 32_000) == pytest.approx(32 * 250 * TILE_NS)
    assert interpolate(table, 20, 32_000) < interpolate(table, 22, 32_000)
    assert interpolate(table, 1, 32_000) < 0.1 * interpolate(table, 22, 32_000)


def test_two_gpus_have_half_the_heads_each() -> None:
    arch, device = load_model("llama-3.1-8b"), load_device("a100")
    half = alone_ns(arch, Layout(tensor=2), device, 256, 32_000)
    assert interpolate(half, 44, 32_000) == interpolate(alone_ns(arch, Layout(), device, 256, 32_000), 22, 32_000)


def test_a_graph_cuts_as_it_was_captured() -> None:
    """18 requests run the graph of 24: 192 programs of 8 heads, 89 % of what an A100 holds, so all are whole."""
    arch, device = load_model("llama-3.1-8b"), load_device("a100")
    eager, graph = (alone_ns(arch, Layout(), device, 256, 131_072, sizes) for sizes in ((), (1, 2, 4, 8, 16, 24)))
    whole = pytest.approx(32 * 250 * TILE_NS)
    assert interpolate(graph, 18, 32_000) == interpolate(graph, 24, 32_000) == interpolate(eager, 24, 32_000) == whole
    assert interpolate(eager, 18, 32_000) < 0.6 * interpolate(graph, 18, 32_000)
    assert interpolate(graph, 25, 32_000) == interpolate(eager, 25, 32_000)


# AIConfigurator 0.12, tables a100_sxm (vLLM 0.14) and l40s (0.24), FlashAttention 2, 128 a head, us of one layer.
# Where all KV fits the cache, as 4 requests on an L40S do, tables are of a hot cache and say nothing of a server
@pytest.mark.parametrize(
    ("device", "requests", "context", "measured_us"),
    [
        ("a100", 1, 4096, 101.7),
        ("a100", 4, 4096, 105.1),
        ("a100", 8, 4096, 108.7),
        ("a100", 16, 4096, 199.4),
        ("a100", 1, 1024, 31.5),
        ("l40s", 1, 4096, 80.9),
        ("l40s", 16, 4096, 417.4),
    ],
)
def test_contexts_stay_whole_where_each_query_head_has_its_own_keys(
    device: str, requests: int, context: int, measured_us: float
) -> None:
    """Llama 2 7B on four GPUs: 8 heads of 8. Cut as those of Llama 3 are, one context would be told at half of it."""
    engine = EngineSettings(max_num_seqs=64, max_model_len=4096)
    tables = resolve(Deployment(model="llama-2-7b", device=device, layout=Layout(tensor=4), engine=engine)).tables
    told_us = interpolate(tables.decode_ns, requests, requests * context) / 32 / 1e3
    assert told_us == pytest.approx(measured_us, rel=0.25)


@pytest.mark.parametrize(
    ("device", "kv", "alike"),
    [("a100", "bf16", True), ("l40s", "bf16", True), ("rtx-5090", "bf16", True), ("a100", "fp8", False)]
    + [(name, "bf16", False) for name in ("h100", "h200", "b200", "mi300x")],
)
def test_who_cuts_batches_alike(device: str, kv: str, alike: bool) -> None:
    assert cuts_batches_alike(load_device(device), kv) is alike  # type: ignore[arg-type]
    deployment = Deployment(model="llama-3.2-1b", device=device, kv=kv)
    assert (len(resolve(deployment).tables.alone_ns) > 0) is alike


def test_sglang_has_kernels_of_its_own() -> None:
    assert len(replica(discipline="sglang").tables.alone_ns) == 0


FASTEST, BANDWIDTH = 0.01, 0.7  # tokens a ns: of a request by itself, and of the chip


def shared(contexts: F64) -> float:
    """When the last of requests that all run at once ends, ns: each has its part of the bandwidth, and no more than a
    request by itself.
    """
    left, now = np.sort(contexts), 0.0
    while len(left):
        took = left[0] / min(FASTEST, BANDWIDTH / len(left))
        now, left = now + took, (left - left[0])[1:]
    return now


MOST_REQUESTS, MOST_TOKENS = 256, 1 << 17
CHIP = constant_tables(8, 8)._replace(
    alone_ns=np.tile(grid_values(MOST_TOKENS) / FASTEST, (len(grid_values(MOST_REQUESTS)), 1))
)


def told(contexts: F64) -> float:
    """The same as tables tell it, from the number of requests, their tokens, and the longest."""
    even = shared(np.full(len(contexts), contexts.mean()))
    return even + uneven_ns(CHIP, len(contexts), int(contexts.sum()), int(contexts.max()), even)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(16, 100_000), min_size=1, max_size=MOST_REQUESTS))
def test_it_lies_between_what_is_sure(lengths: list[int]) -> None:
    contexts = np.array(lengths, dtype=np.float64)
    even = shared(np.full(len(contexts), contexts.mean()))
    others = (contexts.sum() - contexts.max()) / max(len(contexts) - 1, 1)
    alike = shared(np.array([contexts.max(), *[others] * (len(contexts) - 1)]))
    assert even * (1 - 1e-9) <= told(contexts) <= max(even, alike) * (1 + 1e-9)


@given(st.integers(1, MOST_REQUESTS), st.integers(1, 100_000))
def test_an_even_batch_takes_what_it_takes(requests: int, tokens: int) -> None:
    contexts = np.full(requests, float(tokens))
    assert told(contexts) == pytest.approx(shared(contexts), rel=1e-12)


@pytest.mark.parametrize("requests", [24, 64, 200])
@pytest.mark.parametrize("sigma", [0.8, 1.2])
def test_mixes_as_in_traces_are_told_within_a_tenth(requests: int, sigma: float) -> None:
    """Log-normal lengths; an even batch alone would be told 10 to 60 % too fast."""
    rng = np.random.default_rng(3)
    off = []
    for _ in range(100):
        contexts = np.ceil(np.minimum(np.exp(rng.normal(7.0, sigma, requests)), MOST_TOKENS))
        off.append(told(contexts) / shared(contexts) - 1.0)
    assert abs(float(np.mean(off))) < 0.05
    assert float(np.percentile(np.abs(off), 90)) < 0.1


def test_one_long_request_holds_all_others_up_on_an_a100_and_not_on_an_h100() -> None:
    """31 chats with and without one of 32,000 tokens among them, and as many tokens spread evenly."""
    mixed, even = [500] * 30 + [32_000], [1_516] * 30 + [1_520]
    slower = {}
    for device in ("a100", "h100"):
        spec = replica(device, max_num_batched_tokens=16_384)
        steps = [median_step_ns(spec, prompts) for prompts in (mixed, even)]
        slower[device] = steps[0] / steps[1]
    assert slower["h100"] == pytest.approx(1.0, abs=0.02)
    assert slower["a100"] > 1.5


def median_step_ns(spec: ReplicaSpec, prompts: list[int]) -> float:
    """Of the decode steps of requests that come together."""
    workload = Workload(
        name="together",
        arrival_us=np.zeros(len(prompts), dtype=np.int64),
        prompt_tokens=np.array(prompts, dtype=np.int32),
        output_tokens=np.full(len(prompts), 200, dtype=np.int32),
    )
    result = simulate(workload, spec.limits, spec.tables, spec.num_blocks)
    return float(result.itl.quantile(0.5))
