"""Engines that share experts step together: by hand, against engines alone, and through the whole command's path."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from same import assert_same_fleet

from simkit.cluster.fleet import named_router, serve_fleet
from simkit.cluster.lockstep import groups_of, serve_lockstep
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.metrics.result import WATERFALL
from simkit.models.layout import Layout
from simkit.models.steptables import constant_tables
from simkit.workloads.workload import Workload

Chats = Callable[[int, float, int], Workload]
US = 1_000
TOKEN_NS = 1_000


def asks(rows: list[tuple[int, int, int]]) -> Workload:
    """(arrival in us, prompt, output) a request."""
    arrival, prompt, output = zip(*rows, strict=True)
    return Workload(
        name="asks",
        arrival_us=np.array(arrival, dtype=np.int64),
        prompt_tokens=np.array(prompt, dtype=np.int32),
        output_tokens=np.array(output, dtype=np.int32),
    )


@pytest.fixture(scope="module")
def sharing() -> ReplicaSpec:
    """One of two engines that share experts; a step takes a microsecond a token, and nothing else does."""
    engine = EngineSettings(max_num_seqs=8, max_model_len=2048, num_gpu_blocks_override=512, async_scheduling=False)
    layout = Layout(data=2, expert=2)
    spec = resolve(Deployment(model="qwen3-30b-a3b", device="h100", layout=layout, engine=engine))
    return replace(spec, tables=constant_tables(spec.limits.max_num_batched_tokens, 8, token_ns=TOKEN_NS))


def together(workload: Workload, spec: ReplicaSpec, engines: int = 2, router: str = "round_robin") -> FleetResult:
    _, chosen, _ = named_router(router, 0)
    return serve_lockstep(workload, [Member(spec)] * engines, router, chosen)


def engine_ns(fleet: FleetResult, column: str) -> list[int]:
    """Times as the engines had them, without what clients wait for beside, in the workload's order, us."""
    places = zip(fleet.replica_of, fleet.row_of, strict=True)
    return [int(getattr(fleet.replicas[i].requests, column)[row]) // US for i, row in places]


def test_a_decode_waits_for_the_prompt_of_another_engine(sharing: ReplicaSpec) -> None:
    """Steps: (100 | 10) tokens 100 us, then the first engine runs along: 1 us each."""
    fleet = together(asks([(0, 100, 1), (0, 10, 3)]), sharing)
    assert engine_ns(fleet, "first_token_ns") == [100, 100]
    assert engine_ns(fleet, "finish_ns") == [100, 102]
    alone = serve_fleet(asks([(0, 100, 1), (0, 10, 3)]), [sharing] * 2, "round_robin")
    assert engine_ns(alone, "finish_ns") == [100, 12]


def test_who_comes_in_the_middle_waits_for_the_others_step(sharing: ReplicaSpec) -> None:
    """The third comes at 50 us to an engine that has nothing to do but runs along until 100 us; then 30 us for both."""
    fleet = together(asks([(0, 5, 1), (0, 100, 3), (50, 30, 1)]), sharing)
    assert engine_ns(fleet, "scheduled_ns") == [0, 0, 100]
    assert engine_ns(fleet, "finish_ns") == [100, 131, 130]


def test_all_rest_when_none_has_work(sharing: ReplicaSpec) -> None:
    fleet = together(asks([(0, 5, 1), (500, 7, 1)]), sharing)
    assert engine_ns(fleet, "finish_ns") == [5, 507]


def test_waiting_for_the_slowest_is_a_stall(sharing: ReplicaSpec) -> None:
    """While the first computes 300 tokens, the other decodes one: 1 us of its own, 299 for the first."""
    fleet = together(asks([(0, 10, 60), (20, 300, 1)]), sharing)
    requests = fleet.replicas[0].requests
    assert requests.stalled_ns[0] // US == 299
    assert requests.decode_ns[0] // US == 59


def test_experts_compute_the_mean_of_the_engines_tokens(sharing: ReplicaSpec) -> None:
    """A microsecond a token, 0.75 of it the experts': 100 and 10 tokens take 25 + 0.75 x 55, then 0.25 + 0.75."""
    tables = sharing.tables._replace(shared_linear_ns=0.75 * sharing.tables.linear_ns)
    fleet = together(asks([(0, 100, 1), (0, 10, 3)]), replace(sharing, tables=tables))
    assert engine_ns(fleet, "first_token_ns") == [66, 66]
    assert engine_ns(fleet, "finish_ns") == [66, 68]


def test_the_experts_part_is_that_of_the_whole(sharing: ReplicaSpec) -> None:
    spec = resolve(sharing.deployment)
    assert len(spec.tables.shared_linear_ns) == len(spec.tables.linear_ns)
    share = spec.tables.shared_linear_ns[[1, 256, 2048]] / spec.tables.linear_ns[[1, 256, 2048]]
    assert (share > 0.1).all()
    assert (share < 0.9).all()


def test_engines_with_equal_work_are_as_fast_as_one(spec: ReplicaSpec, chats: Chats) -> None:
    one = chats(80, 10.0, 3)
    twice = replace(
        one,
        arrival_us=np.repeat(one.arrival_us, 2),
        prompt_tokens=np.repeat(one.prompt_tokens, 2),
        output_tokens=np.repeat(one.output_tokens, 2),
        prefixes=None,
    )
    pair = replace(spec, deployment=spec.deployment.model_copy(update={"layout": Layout(data=2, expert=2)}))
    fleet = together(twice, pair)
    alone = serve_fleet(replace(one, prefixes=None), [spec], "round_robin").requests
    assert fleet.requests.finish_ns[::2].tolist() == alone.finish_ns.tolist()
    assert fleet.requests.finish_ns[1::2].tolist() == alone.finish_ns.tolist()


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding", "power_of_two", "prefix_aware", "kv_overlap"])
def test_engines_that_share_with_nobody_are_those_of_any_fleet(spec: ReplicaSpec, chats: Chats, router: str) -> None:
    workload = chats(150, 40.0, 5)
    assert_same_fleet(together(workload, spec, 3, router), serve_fleet(workload, [spec] * 3, router))


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_times_add_up_and_steps_end_together(spec: ReplicaSpec, chats: Chats, seed: int, asynchronous: bool) -> None:
    limits = spec.limits._replace(pipeline_depth=2 if asynchronous else 1)
    layout = Layout(data=4, expert=4)
    four = replace(spec, limits=limits, deployment=spec.deployment.model_copy(update={"layout": layout}))
    fleet = together(chats(200, 60.0, seed), four, 4, "least_outstanding")
    assert fleet.accounts.finished == 200
    for replica in fleet.replicas:
        found = replica.requests
        parts = [getattr(found, name) for name in WATERFALL]
        assert min(int(part.min()) for part in parts) >= 0
        assert (sum(parts) == found.finish_ns - found.arrival_ns).all()
        assert replica.blocks_free_at_end == replica.blocks
    # tokens of all engines come at the ends of common steps: so do first tokens, of which many coincide
    ends = np.concatenate([replica.requests.finish_ns for replica in fleet.replicas])
    assert len(np.unique(ends)) < len(ends)
    slower = serve_fleet(chats(200, 60.0, seed), [spec] * 4, "least_outstanding")
    assert fleet.requests.finish_ns.sum() > slower.requests.finish_ns.sum()


def test_a_cluster_of_engines_that_share(sharing: ReplicaSpec) -> None:
    workload = asks([(10 * i, 50, 5) for i in range(40)])
    pools = [{"name": "all", "replicas": 2, "data_parallel": 2}]
    cluster = Cluster.model_validate({"pools": pools, "router": "data_parallel"})
    fleet = serve_cluster(workload, cluster, lambda _: sharing)
    assert [life.pool for life in fleet.lives] == ["all"] * 4
    assert fleet.accounts.finished == 40
    with pytest.raises(InputError, match="data_parallel: 2"):
        serve_cluster(workload, Cluster.model_validate({"replicas": 3}), lambda _: sharing)
    bounded = Cluster.model_validate({"pools": pools, "admission": {"queue_limit": 5}})
    with pytest.raises(InputError, match="leave those out"):
        serve_cluster(workload, bounded, lambda _: sharing)
    assert groups_of([Member(sharing)] * 4) == [(0, 2), (2, 4)]
