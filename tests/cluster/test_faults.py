"""What breaks, on servers whose service times are known to the nanosecond."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simpy
from one_step_jobs import jobs, statuses

from simkit.cluster.checks import check_fleet
from simkit.cluster.job import Job
from simkit.cluster.offers import Offers
from simkit.cluster.result import FleetResult
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.cluster.station import Station
from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.workloads.workload import Workload

MS = 1_000_000


def serve(workload: Workload, spec: ReplicaSpec, faults: list[dict[str, object]], **cluster: object) -> FleetResult:
    whole = Cluster.model_validate({"faults": {"schedule": faults}, **cluster})
    fleet = serve_cluster(workload, whole, lambda _: spec, 0)
    check_fleet(fleet, workload)
    return fleet


CRASH = {"at_s": 0.005, "kind": "crash", "replica": 0, "for_s": 0.020}


def test_a_crash_loses_what_is_there_and_the_gateway_sends_it_on(single_server: ReplicaSpec) -> None:
    # two of four are on replica 0, one of them half done; replica 1 serves them after its own
    fleet = serve(jobs([0, 0, 1, 1], [10] * 4), single_server, [CRASH], replicas=2)
    assert statuses(fleet) == ["finished"] * 4
    assert (fleet.requests.finish_ns // MS).tolist() == [30, 10, 40, 20]
    assert fleet.outside_ns.tolist() == [5 * MS, 0, 4 * MS, 0]
    assert fleet.accounts.resent == 2
    assert [(life.number, life.asked_ns // MS, life.ready_ns and life.ready_ns // MS) for life in fleet.lives] == [
        (0, 0, 0), (1, 0, 0), (0, 5, 25),
    ]  # fmt: skip
    assert fleet.lives[0].ended_ns == 5 * MS


def test_the_only_replica_is_waited_for(single_server: ReplicaSpec) -> None:
    fleet = serve(jobs([0], [10]), single_server, [CRASH])
    assert fleet.requests.finish_ns[0] == 35 * MS


def test_without_a_gateway_clients_see_the_error(single_server: ReplicaSpec) -> None:
    lost = {"policy": "fail"}
    fleet = serve(jobs([0, 1], [10, 10]), single_server, [CRASH], lost_jobs=lost)
    assert statuses(fleet) == ["failed", "failed"]
    assert (fleet.requests.finish_ns // MS).tolist() == [5, 5]
    again = {"retries": {"most": 1, "first_pause_s": 0.030, "jitter": 0.0}}
    retried = serve(jobs([0, 1], [10, 10]), single_server, [CRASH], lost_jobs=lost, clients=again)
    assert (retried.requests.finish_ns // MS).tolist() == [45, 55]
    assert retried.accounts.retries == 2


def test_a_request_is_sent_on_only_so_often(single_server: ReplicaSpec) -> None:
    often = [{**CRASH, "at_s": 0.005 + 0.025 * k} for k in range(5)]
    fleet = serve(jobs([0], [10]), single_server, often, lost_jobs={"policy": "retry", "most": 2})
    assert statuses(fleet) == ["failed"]
    assert fleet.accounts.attempts == 3


def test_resuming_keeps_the_tokens_that_were_out(spec: ReplicaSpec) -> None:
    workload = Workload("w", np.zeros(1, np.int64), np.array([300], np.int32), np.array([200], np.int32))
    crash = {"at_s": 0.5, "kind": "crash", "replica": 0, "for_s": 0.0}
    alone = serve(workload, spec, [])
    retried = serve(workload, spec, [crash], lost_jobs={"policy": "retry"})
    resumed = serve(workload, spec, [crash], lost_jobs={"policy": "resume"})
    for fleet in (alone, retried, resumed):
        assert fleet.requests.generated_tokens[0] == 200
    # all again, against the rest behind one longer prompt
    assert retried.requests.finish_ns[0] == alone.requests.finish_ns[0] + 500 * MS
    assert resumed.requests.finish_ns[0] < alone.requests.finish_ns[0] + 50 * MS
    assert resumed.requests.first_token_ns[0] == alone.requests.first_token_ns[0]
    last = resumed.replicas[1].requests
    assert last.prompt_tokens[0] > 300
    assert last.prompt_tokens[0] + last.output_tokens[0] == 300 + 200


@pytest.mark.parametrize(("asked", "left"), [(None, 150), (500, 450), (120, 150)])
def test_what_was_generated_counts_towards_what_was_asked_for(spec: ReplicaSpec, asked: int | None, left: int) -> None:
    """A request of 300 + 200 tokens is taken up after 50; it may ask for as many in all as before (but for the end)."""
    engine = spec.deployment.engine.model_copy(update={"max_tokens": asked})
    deployment = spec.deployment.model_copy(update={"engine": engine})
    workload = Workload("w", np.zeros(1, np.int64), np.array([300], np.int32), np.array([200], np.int32))
    asking = replace(spec, deployment=deployment)
    station = Station(simpy.Environment(), 0, asking, Offers(workload).to(asking), lambda job: None, 1024)
    station.give(Job(0, 0, 350, 150, 500))
    assert station.finish().requests["max_tokens"].tolist() == [left]


def test_a_slow_replica_takes_so_many_times_as_long(single_server: ReplicaSpec) -> None:
    slow = {"at_s": 0.015, "kind": "slow", "for_s": 0.020, "factor": 3.0}
    fleet = serve(jobs([0, 0, 0, 40], [10] * 4), single_server, [slow])
    # the step under way at 15 ms ends as it began; the one after it takes three times as long
    assert (fleet.requests.finish_ns // MS).tolist() == [10, 20, 50, 60]


def test_who_is_cut_off_keeps_its_cache(spec: ReplicaSpec, chats: object) -> None:
    """The same prompt before and after: after a crash it is computed again, after a partition it is found."""
    workload = chats(1, 10.0, 0)  # type: ignore[operator]
    prompt = np.array([1024, 1024], np.int32)
    ids = np.tile(np.arange(4), 2).astype(np.int64)
    twice = replace(
        workload,
        arrival_us=np.array([0, 3_000_000], np.int64),
        prompt_tokens=prompt,
        output_tokens=np.array([5, 5], np.int32),
        prefixes=replace(workload.prefixes, start=np.array([0, 4, 8]), ids=ids),
    )
    for kind, hit in (("crash", 0), ("cut_off", 1008)):
        fleet = serve(twice, spec, [{"at_s": 1.0, "kind": kind, "for_s": 0.5}])
        assert fleet.requests.hit_tokens.tolist() == [0, hit], kind


def test_a_cut_off_replica_works_on_for_nobody(single_server: ReplicaSpec) -> None:
    cut = {"at_s": 0.005, "kind": "cut_off", "replica": 0, "for_s": 0.001}
    fleet = serve(jobs([0], [10]), single_server, [cut])
    # back at 6 ms, but busy with the lost one until 10
    assert fleet.requests.finish_ns[0] == 20 * MS
    assert fleet.replicas[0].computed_tokens == 20_000


def test_a_node_takes_all_its_replicas_down(single_server: ReplicaSpec) -> None:
    down = {"at_s": 0.005, "kind": "node_down", "node": 1, "for_s": 1.0}
    fleet = serve(jobs([0] * 4, [10] * 4), single_server, [down], pools=[{"replicas": 4, "per_node": 2}])
    assert sorted(life.number for life in fleet.lives if life.ended_ns == 5 * MS) == [2, 3]
    assert statuses(fleet) == ["finished"] * 4


@pytest.mark.parametrize("kind", ["node_down", "crash", "cut_off"])
def test_who_is_lost_goes_to_nobody_that_goes_down_at_the_same_moment(single_server: ReplicaSpec, kind: str) -> None:
    """Six replicas on one node, one on another: all six requests are sent on once, to the one that is left."""
    down = {"at_s": 0.005, "kind": kind, "node": 0, "for_s": 1.0}
    pools = [{"replicas": 7, "per_node": 6}]
    fleet = serve(jobs([0] * 7, [10] * 7), single_server, [down], pools=pools, lost_jobs={"most": 1})
    assert statuses(fleet) == ["finished"] * 7
    assert fleet.accounts.resent == 6
    assert sorted(fleet.requests.finish_ns // MS) == [10, 20, 30, 40, 50, 60, 70]


def test_a_rolling_update_takes_one_after_the_other(single_server: ReplicaSpec) -> None:
    workload = jobs(list(range(0, 400, 4)), [10] * 100)
    fleet = serve(workload, single_server, [{"at_s": 0.050, "kind": "update", "for_s": 0.020}], replicas=4)
    assert fleet.accounts.resent == 0
    assert statuses(fleet) == ["finished"] * 100
    first, second = fleet.lives[:4], fleet.lives[4:]
    assert [life.number for life in second] == [0, 1, 2, 3]
    for old, new, after in zip(first, second, [*first[1:], None], strict=True):
        assert old.ended_ns is not None
        assert new.asked_ns == old.ended_ns
        assert new.ready_ns == old.ended_ns + 20 * MS
        if after is not None:
            assert after.ended_ns is not None
            assert after.ended_ns >= new.ready_ns


def test_random_faults_are_of_the_seed_and_of_the_rate(single_server: ReplicaSpec) -> None:
    workload = jobs([20 * i for i in range(3000)], [5] * 3000)
    cluster = Cluster.model_validate({"replicas": 2, "faults": {"random": {"mean_between_s": 2.0, "mean_for_s": 0.01}}})
    fleets = [serve_cluster(workload, cluster, lambda _: single_server, seed) for seed in (1, 1, 2)]
    crashes = [len(fleet.lives) - 2 for fleet in fleets]
    # 60 s x 2 replicas / 2 s = 60, Poisson
    assert all(60 - 4 * 60**0.5 < count < 60 + 4 * 60**0.5 for count in crashes)
    assert fleets[0].lives == fleets[1].lives != fleets[2].lives


def test_what_is_due_after_the_last_request_counts_for_nothing(single_server: ReplicaSpec) -> None:
    workload = jobs([0, 1], [10, 10])
    plain = serve(workload, single_server, [], replicas=2)
    for kind in ("crash", "update"):
        late = serve(workload, single_server, [{"at_s": 500.0, "kind": kind, "for_s": 10.0}], replicas=2)
        assert late.lives == plain.lives
        assert (late.end_ns, late.gpu_ns()) == (plain.end_ns, plain.gpu_ns())
    # an update that is under way when the last request ends goes no further
    update = serve(workload, single_server, [{"at_s": 0.0, "kind": "update", "for_s": 0.020}], replicas=2)
    assert update.end_ns == plain.end_ns
    # who was to be back later than that never was
    assert [(life.number, life.ready_ns) for life in update.lives] == [(0, 0), (1, 0), (0, None)]


def test_slow_downs_of_one_replica_multiply_and_end_by_themselves(single_server: ReplicaSpec) -> None:
    slow = [
        {"at_s": 0.005, "kind": "slow", "for_s": 0.105, "factor": 2},
        {"at_s": 0.025, "kind": "slow", "for_s": 0.055, "factor": 3},
    ]
    fleet = serve(jobs([0, 10, 30, 90, 120], [10] * 5), single_server, slow)
    # x1 from 0; x2 from 10; x6 from 30; x2 again from 90, the first still going on; x1 from 120
    assert (fleet.requests.finish_ns // MS).tolist() == [10, 30, 90, 110, 130]


def test_a_warm_replica_that_crashes_is_warm_again(single_server: ReplicaSpec) -> None:
    scaling = {"most": 2, "warm": 1, "rule": {"kind": "queue", "target": 100}, "interval_s": 0.01}
    crash = {"at_s": 0.050, "kind": "crash", "replica": 1, "for_s": 0.010}
    startup = {"load_gb_per_s": 1e4}
    workload = jobs(list(range(0, 200, 20)), [5] * 10)
    fleet = serve(workload, single_server, [crash], autoscaling=[scaling], startup=startup)
    # paid for, and sent nothing
    assert [(life.number, life.asked_ns // MS, life.ready_ns) for life in fleet.lives] == [
        (0, 0, 0), (1, 0, None), (1, 50, None),
    ]  # fmt: skip
    assert fleet.lives[1].ended_ns == 50 * MS


def test_replicas_that_scaling_adds_break_down_too(single_server: ReplicaSpec) -> None:
    scaling = {"least": 4, "most": 4, "rule": {"kind": "queue", "target": 1}, "interval_s": 0.01}
    faults = {"random": {"mean_between_s": 1.0, "mean_for_s": 0.01}}
    whole = {"autoscaling": [scaling], "faults": faults, "startup": {"load_gb_per_s": 1e4}}
    workload = jobs([20 * i for i in range(1500)], [5] * 1500)
    fleet = serve_cluster(workload, Cluster.model_validate(whole), lambda _: single_server, 3)
    check_fleet(fleet, workload)
    crashes = [sum(life.number == number for life in fleet.lives) - 1 for number in range(4)]
    # 30 s at one a second each, Poisson
    assert all(30 - 4 * 30**0.5 < count < 30 + 4 * 30**0.5 for count in crashes)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"at_s": 1, "kind": "crash", "factor": 3}, "factor is of slow"),
        ({"at_s": 1, "kind": "cut_off"}, "needs for_s"),
        ({"at_s": 1, "kind": "node_down"}, "needs the node"),
    ],
)
def test_a_fault_that_says_too_much_or_too_little_is_refused(fault: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Cluster.model_validate({"faults": {"schedule": [fault]}})
    with pytest.raises(ValueError, match="slow_factor is of slow"):
        Cluster.model_validate({"faults": {"random": {"mean_between_s": 1, "slow_factor": 3}}})


def test_a_schedule_file_is_read_or_refused(single_server: ReplicaSpec, tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text("- {at_s: 0.005, kind: crash, replica: 0, for_s: 0.02}\n")
    cluster = Cluster.model_validate({"faults": {"file": str(path)}})
    fleet = serve_cluster(jobs([0], [10]), cluster, lambda _: single_server, 0)
    assert fleet.requests.finish_ns[0] == 35 * MS
    for text, said in (
        ("- {at_s: 1, kind: krash}", "entry 1: kind='krash'"),
        ("- {at_s: 1, kind: slow}", "slow needs for_s"),
        ("at_s: 1", "holds no list"),
        ("- {at: 1, kind: crash}", r"at: unknown key; did you mean 'at_s'"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            serve_cluster(jobs([0], [10]), cluster, lambda _: single_server, 0)
    gone = Cluster.model_validate({"faults": {"file": str(tmp_path / "none.yaml")}})
    with pytest.raises(InputError, match="cannot be read"):
        serve_cluster(jobs([0], [10]), gone, lambda _: single_server, 0)
