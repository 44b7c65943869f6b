"""KV behind the device caches: a hit there costs its transfer, and nothing is lost or leaks."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_clusters import random_workload, small_spec

from simkit.cluster.checks import check_fleet
from simkit.cluster.fleet import serve_fleet
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.routers import Router, new_router
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.cluster.tiered import serve_tiered
from simkit.cluster.tiers import Tier
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve, with_whole_contexts
from simkit.engine.settings import EngineSettings
from simkit.engine.simulate import simulate
from simkit.errors import InputError
from simkit.metrics.result import WATERFALL, Status
from simkit.models.layout import Layout
from simkit.workloads.workload import Prefixes, Workload

TOKEN_BYTES = 32 * 2 * 8 * 128 * 2  # Llama-3.1-8B: 32 layers, K and V, 8 heads of 128, 2 bytes


def tier(gb_per_s: float, **more: object) -> Tier:
    link = {"gb_per_s": gb_per_s, "achieved": 1.0}
    return Tier.model_validate({"capacity_gib": 100, "link": link, **more})


def serve(workload: Workload, specs: Sequence[ReplicaSpec], tiers: Sequence[Tier], router: str) -> FleetResult:
    chosen = new_router(router, np.random.default_rng(0))
    assert isinstance(chosen, Router)
    fleet = serve_tiered(workload, [Member(spec) for spec in specs], tiers, router, chosen)
    check_fleet(fleet, workload)
    return fleet


def asked_in_turn(contents: list[list[int]], prompt: int = 1000, every_s: int = 10) -> Workload:
    """Requests far apart, of `prompt` tokens that begin with contents of 256 tokens each."""
    n = len(contents)
    lengths = [len(own) for own in contents]
    return Workload(
        name="in turn",
        arrival_us=np.arange(n, dtype=np.int64) * every_s * 1_000_000,
        prompt_tokens=np.full(n, prompt, dtype=np.int32),
        output_tokens=np.full(n, 3, dtype=np.int32),
        prefixes=Prefixes(
            256,
            np.concatenate(([0], np.cumsum(lengths))),
            np.array([content for own in contents for content in own], np.int64),
        ),
    )


A, B, C, D, E, F = ([10 * k + 1, 10 * k + 2, 10 * k + 3] for k in range(6))


def test_another_replica_s_prefix_comes_from_the_shared_store(spec: ReplicaSpec) -> None:
    """The second of two equal requests goes to the other replica and reads 768 tokens at 2 GB/s."""
    workload = asked_in_turn([A, A])
    fleet = serve(workload, [spec, spec], [tier(2.0, shared=True)], "least_outstanding")
    assert fleet.replica_of[0] != fleet.replica_of[1], "by this seed's draw among equals"
    assert fleet.requests.transfer_ns.tolist() == [0, 768 * TOKEN_BYTES // 2]
    assert fleet.requests.hit_tokens.tolist() == [0, 768]
    assert [part.requests.hit_tokens.tolist() for part in fleet.replicas] == [[0], [0]]
    # then it computes what is left, as one whose prefix is in its own cache does
    own = simulate(workload, spec.limits, spec.tables, spec.num_blocks).requests
    own_ns = int((own.first_token_ns - own.arrival_ns)[1])
    ttft_ns = int((fleet.requests.first_token_ns - fleet.requests.arrival_ns)[1])
    assert ttft_ns == own_ns + 768 * TOKEN_BYTES // 2
    store = fleet.tiers[0]
    assert (store.hit_tokens, store.read_bytes) == (768, 768 * TOKEN_BYTES)
    assert store.written_bytes == store.held_bytes == 768 * TOKEN_BYTES


@pytest.mark.parametrize("write", ["through", "on_evict"])
def test_what_the_device_gave_up_comes_from_the_host(spec: ReplicaSpec, write: str) -> None:
    """A device cache of 255 blocks holds 4 such prompts of 63: five others push the first out."""
    workload = asked_in_turn([A, B, C, D, E, F, A])
    alone = serve_fleet(workload, [spec], "round_robin")
    assert alone.requests.hit_tokens.tolist() == [0] * 7
    fleet = serve(workload, [spec], [tier(25.0, write=write)], "least_outstanding")
    assert fleet.requests.hit_tokens.tolist() == [0] * 6 + [768]
    expected_ns = 768 * TOKEN_BYTES / 25
    assert fleet.requests.transfer_ns[6] == pytest.approx(expected_ns, abs=2)
    written = fleet.tiers[0].written_bytes // (256 * TOKEN_BYTES)
    assert written == (18 if write == "through" else written)
    assert 3 <= written <= 18
    saved = alone.requests.prefill_ns[6] - fleet.requests.prefill_ns[6]
    assert saved > 0


def test_a_hit_is_as_slow_as_its_link(spec: ReplicaSpec) -> None:
    """TTFT falls with bandwidth; over a link slower than prefill a hit costs more than a miss."""
    workload = asked_in_turn([A, B, C, D, E, F, A])

    def ttft_ns(fleet: FleetResult) -> int:
        return int(fleet.requests.first_token_ns[6] - fleet.requests.arrival_ns[6])

    missed = ttft_ns(serve_fleet(workload, [spec], "round_robin"))
    found = [ttft_ns(serve(workload, [spec], [tier(rate)], "least_outstanding")) for rate in (0.5, 5.0, 50.0)]
    assert found[0] > missed > found[2]
    assert found == sorted(found, reverse=True)


def test_a_tier_too_small_gives_up_the_least_recently_used(spec: ReplicaSpec) -> None:
    room = 9 * 256 * TOKEN_BYTES / (1 << 30)  # three prompts' worth
    workload = asked_in_turn([A, B, C, D, E, F, E, A])
    small = serve(workload, [spec], [tier(25.0, capacity_gib=room + 1e-6)], "least_outstanding")
    assert small.requests.hit_tokens.tolist()[7] == 0
    assert small.tiers[0].evicted_bytes == 3 * 3 * 256 * TOKEN_BYTES + 3 * 256 * TOKEN_BYTES
    assert small.tiers[0].held_bytes == 9 * 256 * TOKEN_BYTES
    # a second tier takes what the first gives up
    chain = [tier(25.0, capacity_gib=room + 1e-6), tier(1.0, name="disk", write="on_evict")]
    both = serve(workload, [spec], chain, "least_outstanding")
    assert both.requests.hit_tokens.tolist()[7] == 768
    assert both.tiers[1].hit_tokens == 768
    assert both.requests.transfer_ns[7] == pytest.approx(768 * TOKEN_BYTES, abs=2)


def test_without_sharing_tiers_change_nothing(spec: ReplicaSpec, chats: Callable[..., Workload]) -> None:
    workload = replace(chats(200, 10.0, 2), prefixes=None)
    fleet = serve(workload, [spec], [tier(25.0)], "least_outstanding")
    alone = simulate(workload, spec.limits, spec.tables, spec.num_blocks).requests
    assert np.array_equal(fleet.requests.first_token_ns, alone.first_token_ns)
    assert np.array_equal(fleet.requests.finish_ns, alone.finish_ns)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.booleans())
def test_nothing_is_lost_and_nothing_leaks(seed: int, replicas: int, late: bool) -> None:
    """Small caches, small tiers, links of all speeds: accounts, waterfalls, free blocks, and that it ends."""
    rng = np.random.default_rng(seed)
    workload = random_workload(rng)
    specs = [small_spec(int(rng.choice([33, 40, 200])), int(rng.choice([1, 3, 8])), True, late)] * replicas
    tiers = [
        tier(
            float(rng.choice([0.01, 0.3, 10.0])),
            name=f"tier {level}",
            capacity_gib=float(rng.choice([1e-3, 5e-3, 1.0])),
            shared=bool(rng.random() < 0.5),
            write=str(rng.choice(["through", "on_evict"])),
        )
        for level in range(int(rng.integers(1, 4)))
    ]
    router = str(rng.choice(["least_outstanding", "prefix_aware", "kv_overlap", "power_of_two"]))
    fleet = serve(workload, specs, tiers, router)
    assert set(fleet.requests.status.tolist()) <= {Status.FINISHED, Status.REJECTED}
    assert all((getattr(fleet.requests, part) >= 0).all() for part in WATERFALL)
    assert fleet.requests.hit_tokens.sum() >= sum(found.hit_tokens for found in fleet.tiers)
    for found, asked in zip(fleet.tiers, tiers, strict=True):
        assert found.read_bytes == found.hit_tokens * TOKEN_BYTES
        assert found.held_bytes == found.written_bytes - found.evicted_bytes
        assert found.held_bytes <= asked.capacity_gib * (1 << 30) * (1 if asked.shared else replicas)
    again = serve(workload, specs, tiers, router)
    assert np.array_equal(again.requests.finish_ns, fleet.requests.finish_ns)


def test_as_a_section_of_a_configuration(spec: ReplicaSpec, chats: Callable[..., Workload]) -> None:
    described = {
        "replicas": 2,
        "router": "least_outstanding",
        "tiers": [{"capacity_gib": 4, "link": {"kind": "pcie5"}}],
    }

    def same(deployment: Deployment | None) -> ReplicaSpec:
        return spec

    workload = chats(200, 10.0, 1)
    fleet = serve_cluster(workload, Cluster.model_validate(described), same)
    check_fleet(fleet, workload)
    assert fleet.tiers[0].hit_tokens > 0


def test_replicas_that_cannot_share(spec: ReplicaSpec) -> None:
    other = small_spec(40, 3, False, True)
    with pytest.raises(InputError, match="enable_prefix_caching"):
        serve(asked_in_turn([A]), [other], [tier(1.0)], "least_outstanding")
    engine = spec.deployment.engine.model_copy(update={"discipline": "static"})
    static = replace(spec, deployment=spec.deployment.model_copy(update={"engine": engine}))
    with pytest.raises(InputError, match="discipline 'static'"):
        serve(asked_in_turn([A]), [static], [tier(1.0)], "least_outstanding")
    odd = replace(spec, limits=spec.limits._replace(block_size=48))
    with pytest.raises(InputError, match=r"block_size=48: with tiers it has to divide the 256 tokens"):
        serve(asked_in_turn([A]), [odd], [tier(1.0)], "least_outstanding")


def test_states_are_not_moved() -> None:
    engine = EngineSettings(max_model_len=4096)
    deployment = Deployment(model="qwen3-next-80b-a3b", device="h200", layout=Layout(tensor=2), engine=engine)
    with pytest.raises(InputError, match=r"states that its layers keep beside KV are not moved here"):
        with_whole_contexts(resolve(deployment), resolve)
