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
