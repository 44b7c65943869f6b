"""Engines that share experts step together: by hand, against engines alone, and through the whole command's path."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from same import assert_same_fleet

from simkit.cluster.checks import check_fleet
from simkit.cluster.fleet import named_router, serve_fleet
from simkit.cluster.live import Rules, serve_live
from simkit.cluster.lockstep import Lockstep, least_common_ns
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Life, Member, groups_of
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.cluster.station import Station
from simkit.cluster.way import Straight
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.metrics.result import WATERFALL
from simkit.models.front_end import NO_FRONT_END
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
    tables = constant_tables(spec.limits.max_num_batched_tokens, 8, token_ns=TOKEN_NS)
    return replace(spec, tables=tables, front_end=NO_FRONT_END)


def together(workload: Workload, spec: ReplicaSpec, engines: int = 2, router: str = "round_robin") -> FleetResult:
    _, chosen, _ = named_router(router, 0)
    return serve_live(workload, [Member(spec)] * engines, router, chosen, Rules(), np.random.default_rng(0))


def served(workload: Workload, spec: ReplicaSpec, replicas: int = 1, **cluster: object) -> FleetResult:
    """By replicas of two engines each, in a cluster with more in it."""
    whole = {"pools": [{"name": "all", "replicas": replicas, "data_parallel": 2}], **cluster}
    fleet = serve_cluster(workload, Cluster.model_validate(whole), lambda _: spec, 0)
    check_fleet(fleet, workload)
    return fleet


def engine_ns(fleet: FleetResult, column: str) -> list[int]:
    """Times as the engines had them, without what clients wait for beside, in the workload's order, us."""
    places = zip(fleet.replica_of, fleet.row_of, strict=True)
    return [int(getattr(fleet.replicas[i].requests, column)[row]) // US for i, row in places]


def test_a_decode_waits_for_the_prompt_of_another_engine(sharing: ReplicaSpec) -> None:
    """Steps: (100 | 10) tokens 100 us, then the first engine runs along: 1 us each."""
    fleet = together(asks([(0, 100, 1), (0, 10, 3)]), sharing)
    assert engine_ns(fleet, "first_token_ns") == [100, 100]
    assert engine_ns(fleet, "finish_ns") == [100, 102]
    apart = replace(sharing, deployment=sharing.deployment.model_copy(update={"layout": Layout()}))
    alone = serve_fleet(asks([(0, 100, 1), (0, 10, 3)]), [apart] * 2, "round_robin")
    assert engine_ns(alone, "finish_ns") == [100, 12]


def test_who_comes_in_the_middle_waits_for_the_others_step(sharing: ReplicaSpec) -> None:
    """The third comes at 50 us to an engine that has nothing to do but runs along until 100 us; then 30 us for both."""
    fleet = together(asks([(0, 5, 1), (0, 100, 3), (50, 30, 1)]), sharing)
    assert engine_ns(fleet, "scheduled_ns") == [0, 0, 100]
    assert engine_ns(fleet, "finish_ns") == [100, 131, 130]


def test_all_rest_when_none_has_work(sharing: ReplicaSpec) -> None:
    fleet = together(asks([(0, 5, 1), (500, 7, 1)]), sharing)
    assert engine_ns(fleet, "finish_ns") == [5, 507]


@pytest.mark.parametrize(
    ("arrival_us", "starts_us", "empty"),
    [
        (150, 200, 1),
        (200, 200, 1),
        (201, 300, 2),
        (3_099, 3_100, 30),
        (3_100, 3_100, 30),
        (3_101, 3_200, 31),
        (3_200, 3_200, 31),
        (3_210, 3_210, 31),
    ],
)
def test_engines_go_on_without_work_up_to_their_32nd_step(
    sharing: ReplicaSpec, arrival_us: int, starts_us: int, empty: int
) -> None:
    """100 us a step: one of 5 tokens and 31 of nothing, at whose ends others are heard; from 3,200 us on all rest."""
    tables = constant_tables(sharing.limits.max_num_batched_tokens, 8, step_ns=100 * US)
    fleet = together(asks([(0, 5, 1), (arrival_us, 7, 1)]), replace(sharing, tables=tables))
    assert engine_ns(fleet, "finish_ns") == [100, starts_us + 100]
    # both engines are busy in all steps, whoever has work in them; steps that compute something are counted
    assert [one.busy_ns // US for one in fleet.replicas] == [100 * (1 + empty + 1)] * 2
    assert sum(one.steps for one in fleet.replicas) == 2
    for one in fleet.replicas:
        assert one.series.busy.sum() * one.series.bucket_ns == pytest.approx(one.busy_ns)
        assert one.series.busy.max() <= 1.0 + 1e-9


def test_the_count_of_steps_begins_again_after_a_rest(sharing: ReplicaSpec) -> None:
    """Step 1 and 31 empty ones, a rest from 3,200 to 5,050, step 1 up to 5,150 and 31 empty ones again.

    The third comes in the last of these, at 8,240, and is heard at its end; the fourth finds all at rest.
    """
    tables = constant_tables(sharing.limits.max_num_batched_tokens, 8, step_ns=100 * US)
    rows = [(0, 5, 1), (5_050, 7, 1), (8_240, 9, 1), (20_000, 9, 1)]
    fleet = together(asks(rows), replace(sharing, tables=tables))
    assert engine_ns(fleet, "finish_ns") == [100, 5_150, 8_350, 20_100]
    assert [one.busy_ns // US for one in fleet.replicas] == [100 * (3 * 32 + 1)] * 2


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


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding"])
def test_a_fleet_of_engines_that_share_steps_together_under_any_router(sharing: ReplicaSpec, router: str) -> None:
    workload = asks([(0, 100, 1), (0, 10, 3), (7, 20, 2)])
    assert_same_fleet(serve_fleet(workload, [sharing] * 2, router), together(workload, sharing, 2, router))


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding", "power_of_two", "prefix_aware", "kv_overlap"])
def test_engines_that_share_with_nobody_are_those_of_any_fleet(
    spec: ReplicaSpec, chats: Chats, router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = chats(150, 40.0, 5)
    plain = serve_fleet(workload, [spec] * 3, router)
    new_station = Straight.station

    def by_itself(way: Straight, life: Life) -> Station:
        station = new_station(way, life)
        Lockstep([station])
        return station

    monkeypatch.setattr(Straight, "station", by_itself)
    assert_same_fleet(together(workload, spec, 3, router), plain)


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
    assert groups_of([Member(sharing)] * 4) == [(Member(sharing),) * 2] * 2


def test_other_disciplines_do_not_step_together(sharing: ReplicaSpec) -> None:
    engine = sharing.deployment.engine.model_copy(update={"discipline": "sglang"})
    other = replace(sharing, deployment=sharing.deployment.model_copy(update={"engine": engine}))
    with pytest.raises(InputError, match="vllm-v1 only"):
        served(asks([(0, 5, 1)]), other)


def test_the_next_question_waits_for_an_answer_that_waited_for_another_engine(sharing: ReplicaSpec) -> None:
    """Two chats of two turns: the first answers come together at 100 us, then 20 and 10 tokens take 20 us for both."""
    workload = replace(
        asks([(0, 100, 1), (0, 10, 1), (0, 20, 1), (0, 10, 1)]),
        session_id=("a", "b", "a", "b"),
        extra={"think_us": (0, 0, 0, 0)},
    )
    fleet = served(workload, sharing, sessions={"replay": "closed"})
    assert (fleet.requests.arrival_ns // US).tolist() == [0, 0, 100, 100]
    assert engine_ns(fleet, "finish_ns") == [100, 100, 120, 120]


def test_who_waits_at_the_door_joins_the_next_common_step(sharing: ReplicaSpec) -> None:
    """100 tokens; then 50, there since 1 us, beside 30 that got the first's place; there is none for a fourth."""
    limits = {"replica_limit": 1, "queue_limit": 1}
    fleet = served(asks([(0, 100, 1), (1, 50, 1), (2, 30, 1), (3, 5, 1)]), sharing, admission=limits)
    assert fleet.accounts.rejected == 1
    assert engine_ns(fleet, "finish_ns")[:3] == [100, 150, 150]


def test_who_gives_up_frees_its_engine_at_the_next_common_step(sharing: ReplicaSpec) -> None:
    """The client of a long answer goes in the second step, of its second token, after which there is no third."""
    fleet = served(asks([(0, 100, 50), (0, 10, 1)]), sharing, clients={"timeout_s": 100.5e-6})
    assert fleet.accounts.timed_out == 1
    assert fleet.requests.finish_ns.tolist() == [100_500, 100 * US]
    assert fleet.replicas[0].steps == 2


def test_a_crash_takes_all_down_who_share_experts(sharing: ReplicaSpec) -> None:
    crash = {"at_s": 50e-6, "kind": "crash", "replica": 1, "for_s": 1e-3}
    fleet = served(asks([(0, 100, 1), (0, 10, 1)]), sharing, 2, faults={"schedule": [crash]}, router="round_robin")
    ends = [(life.number, life.asked_ns // US, life.ended_ns and life.ended_ns // US) for life in fleet.lives]
    assert ends == [(0, 0, 50), (1, 0, 50), (2, 0, None), (3, 0, None), (0, 50, None), (1, 50, None)]
    # both are sent on at 50 us to the other replica's engines, and computed together
    assert fleet.accounts.resent == 2
    assert [fleet.lives[life].number for life in fleet.replica_of.tolist()] == [2, 3]
    assert engine_ns(fleet, "finish_ns") == [150, 150]


def test_one_node_takes_both_nodes_of_a_replica_down(sharing: ReplicaSpec) -> None:
    pools = [{"name": "all", "replicas": 1, "data_parallel": 2, "per_node": 1}]
    down = {"at_s": 50e-6, "kind": "node_down", "node": 1, "for_s": 100e-6}
    fleet = served(asks([(0, 100, 1)]), sharing, pools=pools, faults={"schedule": [down]})
    assert len(fleet.lives) == 4
    assert fleet.requests.finish_ns[0] == 250 * US


def test_an_update_restarts_replicas_and_not_engines(sharing: ReplicaSpec) -> None:
    """Replica by replica: the first has answered both at 100 us and is back at 150, the second idles until then."""
    update = {"at_s": 50e-6, "kind": "update", "for_s": 50e-6}
    fleet = served(asks([(0, 100, 1), (0, 10, 1), (300, 5, 1)]), sharing, 2, faults={"schedule": [update]})
    assert [(life.number, life.ended_ns and life.ended_ns // US) for life in fleet.lives] == [
        (0, 100), (1, 100), (2, 150), (3, 150), (0, None), (1, None), (2, None), (3, None),
    ]  # fmt: skip


def test_a_slow_engine_slows_all(sharing: ReplicaSpec) -> None:
    """From 10 us on engine 1 takes three times as long: for empty steps too, of which the fourth ends at 22 us.

    Then 10 | 3 x 100 tokens, 1 | 3 x 1, and once more 3 us for the last of engine 1.
    """
    slow = {"at_s": 10e-6, "kind": "slow", "replica": 1, "for_s": 1.0, "factor": 3}
    fleet = served(asks([(0, 10, 1), (20, 100, 3), (20, 10, 2)]), sharing, faults={"schedule": [slow]})
    assert engine_ns(fleet, "finish_ns") == [10, 328, 325]


def test_experts_of_a_slow_engine_slow_those_who_have_no_work_there(sharing: ReplicaSpec) -> None:
    """75 of 100 us are experts', of which each engine computes half: 25 + 37.5, and 3 x 37.5 on the slow one."""
    tables = sharing.tables._replace(shared_linear_ns=0.75 * sharing.tables.linear_ns)
    slow = {"at_s": 1e-6, "kind": "slow", "replica": 1, "for_s": 1.0, "factor": 3}
    fleet = served(asks([(2, 100, 1)]), replace(sharing, tables=tables), faults={"schedule": [slow]})
    assert fleet.requests.finish_ns[0] == 2 * US + 112_500


def test_scaling_adds_and_takes_replicas_of_all_their_engines(sharing: ReplicaSpec) -> None:
    """Ten requests ask for ten replicas of which there may be three; with the last answered all but one leave."""
    scaling = {"pool": "all", "least": 1, "most": 3, "interval_s": 1e-4, "down_stabilization_s": 0.0,
               "rule": {"kind": "queue", "target": 1}}  # fmt: skip
    startup = {"load_gb_per_s": 1e4, "engine_s": 0.0}
    many = [(0, 100, 400)] * 10
    late = [(10**6, 5, 1)]
    fleet = served(asks(many + late), sharing, autoscaling=[scaling], startup=startup)
    numbers = [life.number for life in fleet.lives]
    assert sorted(numbers) == list(range(6))
    assert [life.asked_ns // US for life in fleet.lives] == [0, 0, 100, 100, 100, 100]
    gone = [life.ended_ns for life in fleet.lives if life.ended_ns is not None]
    assert len(gone) == 4
    assert gone[0::2] == gone[1::2]


def test_prefill_and_decode_apart_on_engines_that_share(sharing: ReplicaSpec) -> None:
    """Prompts of 161 and 33 tokens, prefilled together, are there 16 and 3 ns later but for a token each.

    A step begins with the short one, and the long one waits for it; three tokens each.
    """
    pools = [{"name": name, "data_parallel": 2} for name in ("prefill", "decode")]
    link = {"gb_per_s": 1e6, "achieved": 1.0}
    workload = asks([(0, 161, 3), (0, 33, 3)])
    fleet = served(workload, sharing, pools=pools, disaggregation={"link": link})
    assert fleet.handover is not None
    assert fleet.handover.handed_over == 2
    assert {fleet.lives[life].pool for life in fleet.replica_of.tolist()} == {"decode"}
    token_bytes = 48 * 2 * 4 * 128 * 2
    moved = [math.ceil(blocks * 16 * token_bytes / 1e6) for blocks in (10, 2)]
    assert fleet.requests.transfer_ns.tolist() == moved
    assert fleet.requests.finish_ns.tolist() == [161_000 + moved[1] + 4_000, 161_000 + moved[1] + 3_000]


@pytest.mark.parametrize("skew", [0.0, 0.3, 0.9])
def test_no_step_is_shorter_than_the_least(sharing: ReplicaSpec, chats: Chats, skew: float) -> None:
    """The bound that a replica sleeps by, against the steps that engines took."""
    spec = resolve(sharing.deployment)
    shared = (1.0 - skew) * spec.tables.shared_linear_ns
    spec = replace(spec, tables=spec.tables._replace(shared_linear_ns=shared))
    fleet = together(chats(60, 20.0, 2), spec)
    shortest = min(replica.busy_ns / replica.steps for replica in fleet.replicas)
    assert 0 < least_common_ns(spec.tables) <= shortest
