"""The three ways to run a fleet (dealt, routed, on the clock) and any number of processes have one result."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from same import assert_same_fleet

from simkit.cluster.fleet import named_router, serve_fleet
from simkit.cluster.live import Rules, serve_live
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.routers import BlindRouter
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.models.layout import Layout
from simkit.workloads.streams import streams
from simkit.workloads.workload import Workload

Chats = Callable[[int, float, int], Workload]

KNOWN: list[str | dict[str, object]] = [
    "round_robin",
    "random",
    "consistent_hash",
    {"kind": "consistent_hash", "key": "prefix"},
    "least_outstanding",
    "least_tokens",
    "power_of_two",
    {"kind": "power_of_two", "load": "tokens"},
    {"kind": "least_reported", "age_s": 0.05},
    {"kind": "least_reported", "age_s": 1.0, "load": "tokens"},
]


def on_the_clock(
    workload: Workload, specs: list[ReplicaSpec], router: str | dict[str, object], seed: int
) -> FleetResult:
    """The same fleet as a SimPy simulation, whatever the router."""
    name, chosen, _ = named_router(router, seed)
    return serve_live(workload, [Member(spec) for spec in specs], name, chosen, Rules(), streams(seed, 2)[1])


@pytest.fixture(scope="session")
def mixed(spec: ReplicaSpec) -> list[ReplicaSpec]:
    """Replicas that differ in device, precision, limits and context."""
    small = EngineSettings(max_num_seqs=8, max_model_len=1100, num_gpu_blocks_override=128, async_scheduling=False)
    other = resolve(Deployment(model="llama-3.1-8b", device="a100-80gb", engine=small))
    other = replace(other, front_end=spec.front_end)
    slow = replace(spec, tables=spec.tables._replace(linear_ns=spec.tables.linear_ns * 1.7))
    return [spec, other, slow, spec]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    replicas=st.integers(1, 5),
    rate_per_s=st.sampled_from([5.0, 40.0, 300.0]),
    router=st.sampled_from(KNOWN),
)
def test_clock_and_compiled_loop_agree(
    spec: ReplicaSpec, chats: Chats, seed: int, replicas: int, rate_per_s: float, router: str | dict[str, object]
) -> None:
    workload = chats(80, rate_per_s, seed)
    specs = [spec] * replicas
    assert_same_fleet(serve_fleet(workload, specs, router, seed), on_the_clock(workload, specs, router, seed))


@pytest.mark.parametrize("router", KNOWN)
def test_they_agree_where_replicas_differ(
    mixed: list[ReplicaSpec], chats: Chats, router: str | dict[str, object]
) -> None:
    workload = chats(300, 60.0, 11)
    long = replace(workload, output_tokens=np.where(np.arange(300) % 9 == 0, 500, workload.output_tokens))
    fast = serve_fleet(long, mixed, router, 3)
    assert_same_fleet(fast, on_the_clock(long, mixed, router, 3))
    assert fast.accounts.rejected > 0


# each compiles loops of its own, half a minute the first time
SLOW = pytest.mark.slow


@pytest.mark.parametrize("discipline", ["sglang", *(pytest.param(name, marks=SLOW) for name in ("orca", "vllm-v0"))])
def test_they_agree_for_other_disciplines(spec: ReplicaSpec, chats: Chats, discipline: str) -> None:
    engine = EngineSettings(
        discipline=discipline,
        max_num_seqs=16,
        max_model_len=2048,
        num_gpu_blocks_override=256,
        max_num_batched_tokens=2048,
    )
    other = resolve(Deployment(model="llama-3.1-8b", device="h100", engine=engine))
    workload = chats(150, 40.0, 5)
    for router in ("least_outstanding", "power_of_two"):
        fast = serve_fleet(workload, [other] * 3, router, 1)
        assert_same_fleet(fast, on_the_clock(workload, [other] * 3, router, 1))


@pytest.mark.parametrize("router", ["least_outstanding", "least_tokens"])
def test_they_agree_where_some_have_drafts(spec: ReplicaSpec, chats: Chats, router: str) -> None:
    drafts = {"speculative_tokens": 3, "acceptance": 0.7, "speculative_method": "eagle"}
    engine = spec.deployment.engine.model_copy(update=drafts)
    drafting = replace(resolve(spec.deployment.model_copy(update={"engine": engine})), front_end=spec.front_end)
    assert len(drafting.tables.draft_ns) > 0
    workload, specs = chats(200, 60.0, 5), [spec, drafting, drafting]
    assert_same_fleet(serve_fleet(workload, specs, router, 3), on_the_clock(workload, specs, router, 3))


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_change_nothing(spec: ReplicaSpec, chats: Chats, processes: int) -> None:
    workload = chats(200, 60.0, 6)
    alone = serve_fleet(workload, [spec] * 5, "random", 4)
    assert isinstance(named_router("random", 4)[1], BlindRouter)
    assert_same_fleet(alone, serve_fleet(workload, [spec] * 5, "random", 4, processes=processes))


def test_a_rack_grows_when_a_replica_gets_more_than_its_share(mixed: list[ReplicaSpec], chats: Chats) -> None:
    """One replica is forty times as fast: nearly all go there."""
    fast = replace(mixed[0], tables=mixed[0].tables._replace(linear_ns=mixed[0].tables.linear_ns / 40))
    slow = replace(mixed[0], tables=mixed[0].tables._replace(linear_ns=mixed[0].tables.linear_ns * 5))
    specs = [fast, slow, slow, slow, slow]
    workload = chats(900, 40.0, 8)
    fleet = serve_fleet(workload, specs, "least_outstanding", 2)
    assert np.bincount(fleet.replica_of)[0] > 900 / 5 * 1.25 + 64
    assert_same_fleet(fleet, on_the_clock(workload, specs, "least_outstanding", 2))


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding", {"kind": "power_of_two", "load": "tokens"}])
def test_they_agree_where_some_models_layers_keep_states(
    spec: ReplicaSpec, chats: Chats, router: str | dict[str, object]
) -> None:
    """Beside a model whose layers all keep KV, with prefix caching and without it."""
    hybrids = [
        resolve(
            Deployment(
                model="qwen3-next-80b-a3b",
                device="h200",
                layout=Layout(tensor=2),
                engine=EngineSettings(max_num_seqs=16, max_model_len=4096, enable_prefix_caching=caching),
            )
        )
        for caching in (True, False)
    ]
    assert [len(each.tables.state_ns) > 0 for each in (*hybrids, spec)] == [True, True, False]
    specs = [spec, *(replace(each, front_end=spec.front_end) for each in hybrids)]
    workload = chats(200, 40.0, 5)
    fast = serve_fleet(workload, specs, router, 3)
    assert_same_fleet(fast, on_the_clock(workload, specs, router, 3))
    assert fast.accounts.finished == 200


def test_they_agree_where_blocks_are_of_other_sizes_than_the_workloads(spec: ReplicaSpec, chats: Chats) -> None:
    """Each size has content ids of its own: blocks of 48 tokens do not divide the 256 that the workload names."""
    odd = resolve(
        Deployment(model="llama-3.1-8b", device="h100", engine=EngineSettings(block_size=48, max_model_len=4096))
    )
    specs = [spec, replace(odd, front_end=spec.front_end)]
    workload = chats(200, 40.0, 5)
    fast = serve_fleet(workload, specs, "least_outstanding", 3)
    assert_same_fleet(fast, on_the_clock(workload, specs, "least_outstanding", 3))
    assert all(result.requests.hit_tokens.sum() > 0 for result in fast.replicas)
