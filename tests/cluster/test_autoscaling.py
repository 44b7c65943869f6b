"""Replicas that come and go, against times worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from one_step_jobs import jobs, statuses

from simkit.cluster.checks import check_fleet
from simkit.cluster.merged import merged_run
from simkit.cluster.result import FleetResult
from simkit.cluster.scaling_rules import QueueRule, Signals, SloRule, UtilisationRule
from simkit.cluster.serve import replicas_over_time, serve_cluster
from simkit.cluster.settings import Cluster
from simkit.cluster.startup import Startup
from simkit.cluster.summary import fleet_summary
from simkit.engine.deployment import ReplicaSpec
from simkit.errors import InputError
from simkit.workloads.workload import Workload

MS = 1_000_000


def serve(workload: Workload, spec: ReplicaSpec, scaling: dict[str, object], **cluster: object) -> FleetResult:
    whole = Cluster.model_validate(
        {
            "startup": {"provision_s": 0.030, "engine_s": 0.020, "load_gb_per_s": 1e4},
            "autoscaling": [{"most": 4, "interval_s": 0.010, "down_stabilization_s": 0.05, **scaling}],
            **cluster,
        }
    )
    fleet = serve_cluster(workload, whole, lambda _: spec, 0)
    check_fleet(fleet, workload)
    return fleet


def load_ns(spec: ReplicaSpec) -> int:
    """Weights at 10^4 GB/s, by hand."""
    return round(spec.memory.weight_bytes / 1e13 * 1e9)


def test_scale_from_zero_waits_for_machine_weights_and_engine(single_server: ReplicaSpec) -> None:
    fleet = serve(jobs([3], [10]), single_server, {"least": 0, "rule": {"kind": "queue", "target": 2}}, replicas=0)
    # seen at the look at 10 ms, ready 50 ms and the weights later
    ready = 60 * MS + load_ns(single_server)
    assert fleet.lives[0].ready_ns == ready
    assert fleet.requests.finish_ns[0] == ready + 10 * MS
    assert fleet.lives[0].asked_ns == 10 * MS
    # paid for from the order to the end of the run
    assert fleet.gpu_ns() == fleet.end_ns - 10 * MS
    assert fleet_summary(fleet)["replicas_over_time"] == {
        "at_s": [0.010, ready / 1e9], "serving": [0, 1], "paid_for": [1, 1],
    }  # fmt: skip
    fixed = serve_cluster(jobs([3], [10]), Cluster(replicas=2), lambda _: single_server, 0)
    assert fleet_summary(fixed)["replicas_over_time"] is None


def test_gpu_time_is_the_integral_of_what_is_paid_for(single_server: ReplicaSpec) -> None:
    workload = jobs([*range(0, 300, 2), 1500], [10] * 151)
    fleet = serve(workload, single_server, {"rule": {"kind": "queue", "target": 3}})
    assert len(fleet.lives) == 4
    times, serving, paid = replicas_over_time(fleet)
    assert int((np.diff(times) * paid[:-1]).sum()) == fleet.gpu_ns()
    assert paid.max() == 4
    assert (serving <= paid).all()
    # at the end only the least is left, and the others went when they had drained
    assert sum(life.ended_ns is None for life in fleet.lives) == 1
    assert fleet.gpu_ns() < 4 * fleet.end_ns


def test_going_down_waits_for_the_stabilization_window(single_server: ReplicaSpec) -> None:
    workload = jobs([0, *range(200, 2000, 100)], [1] * 19)
    scaling = {"rule": {"kind": "queue", "target": 2}, "down_stabilization_s": 0.5}
    fleet = serve(workload, single_server, scaling, replicas=3)
    ends = sorted(life.ended_ns // MS for life in fleet.lives if life.ended_ns is not None)
    # the first look, at 10 ms, asks for one; no look before is in the window, so it is done at once
    assert ends == [10, 10]
    burst = jobs([0] * 8 + list(range(200, 2000, 100)), [9] * 26)
    fleet = serve(burst, single_server, {**scaling, "least": 1}, replicas=3)
    # at 10 ms five are there: three are asked for, and kept for half a second
    ends = sorted(life.ended_ns // MS for life in fleet.lives if life.ended_ns is not None)
    assert len(ends) == 2
    assert all(510 <= end <= 530 for end in ends)


def test_a_warm_replica_is_there_at_once_and_is_paid_for(single_server: ReplicaSpec) -> None:
    workload = jobs([100] * 12 + list(range(112, 400, 6)), [10] * 60)
    scaling = {"rule": {"kind": "queue", "target": 3}}
    cold = serve(workload, single_server, scaling)
    warm = serve(workload, single_server, {**scaling, "warm": 1, "warm_ready_s": 0.001})
    first = [min(life.ready_ns for life in fleet.lives if life.ready_ns) for fleet in (cold, warm)]
    # the look at 110 ms sees the burst of 100 ms
    assert first == [160 * MS + load_ns(single_server), 111 * MS]
    assert warm.requests.finish_ns.mean() < cold.requests.finish_ns.mean()
    assert warm.gpu_ns() > cold.gpu_ns()


def test_draining_loses_nobody(single_server: ReplicaSpec) -> None:
    workload = jobs([0, 0, 0, 0, 600], [40, 200, 40, 200, 1])
    fleet = serve(
        workload, single_server, {"rule": {"kind": "queue", "target": 100}, "most": 2}, replicas=2, router="round_robin"
    )
    assert statuses(fleet) == ["finished"] * 5
    gone = next(life for life in fleet.lives if life.ended_ns is not None)
    # told to go at 10 ms, it ends with the last of what it had
    assert gone.ended_ns in (80 * MS, 400 * MS)
    assert fleet.accounts.resent == 0


def seen(**given: object) -> Signals:
    whole: dict[str, object] = {
        "now_s": 0.0, "replicas": 4, "starting": 0, "queue": 0, "outstanding": 0, "waiting": 0, "utilisation": 0.0,
        "attainment": None, "arrivals_per_s": 0.0,
    }  # fmt: skip
    return Signals(**{**whole, **given})  # type: ignore[arg-type]


def test_rules_ask_for_what_their_formulas_say() -> None:
    queue = QueueRule(target=8)
    assert [queue.desired(seen(outstanding=n)) for n in (0, 1, 8, 9, 40)] == [0, 1, 1, 2, 5]
    use = UtilisationRule(target=0.5)
    # Kubernetes: ceil(4 x value / target), and nothing within 10 %
    assert [use.desired(seen(utilisation=u)) for u in (0.2, 0.46, 0.54, 0.6, 1.0)] == [2, 4, 4, 5, 8]
    slo = SloRule(ttft_s=1.0, attainment=0.9, step=0.5, comfortable=0.98)
    assert [slo.desired(seen(attainment=share)) for share in (0.8, 0.95, 0.99, None)] == [6, 4, 3, 3]
    assert slo.met(0.9, 5.0)
    assert not slo.met(1.1, 0.0)


def test_slo_rule_grows_until_the_target_is_met(single_server: ReplicaSpec) -> None:
    """30 requests of 10 ms in every 100 ms are three servers' work; one server's queue would grow without end."""
    workload = jobs([10 * i // 3 for i in range(900)], [10] * 900)
    rule = {"kind": "slo", "ttft_s": 0.05, "attainment": 0.9, "step": 0.5, "comfortable": 1.0}
    scaling = {"rule": rule, "most": 8, "down_stabilization_s": 0.5}
    fleet = serve(workload, single_server, scaling, router="least_outstanding")
    ttft = fleet.requests.first_token_ns - fleet.requests.arrival_ns
    late = fleet.requests.arrival_ns > 1500 * MS
    assert (ttft[late] <= 50 * MS).mean() > 0.9
    assert 3 <= len([life for life in fleet.lives if life.ended_ns is None]) <= 8


def test_a_rule_of_ones_own(single_server: ReplicaSpec, tmp_path: Path) -> None:
    path = tmp_path / "rule.py"
    path.write_text("def desired(seen):\n    return 1 + int(seen.now_s > 0.1)\n")
    workload = jobs(list(range(0, 400, 20)), [5] * 20)
    fleet = serve(workload, single_server, {"rule": {"kind": "own", "path": str(path)}})
    assert [life.asked_ns // MS for life in fleet.lives] == [0, 110]
    path.write_text("def desired(seen):\n    return None\n")
    with pytest.raises(InputError, match=r"rule\.py: TypeError.*must return a number"):
        serve(workload, single_server, {"rule": {"kind": "own", "path": str(path)}})
    path.write_text("def other(seen):\n    return 1\n")
    with pytest.raises(InputError, match="does not define desired"):
        serve(workload, single_server, {"rule": {"kind": "own", "path": str(path)}})


def test_a_rule_that_wants_nobody_ends_with_requests_in_flight(single_server: ReplicaSpec, tmp_path: Path) -> None:
    path = tmp_path / "rule.py"
    path.write_text("def desired(seen):\n    return 0\n")
    cluster = Cluster.model_validate(
        {"replicas": 0, "autoscaling": [{"least": 0, "most": 1, "rule": {"kind": "own", "path": str(path)}}]}
    )
    fleet = serve_cluster(jobs([0, 1], [10, 10]), cluster, lambda _: single_server, 0)
    assert (fleet.accounts.arrived, fleet.accounts.in_flight) == (2, 2)
    with pytest.raises(InputError, match="no replica was ever started for 2 requests"):
        merged_run(fleet)


def test_startup_adds_up(spec: ReplicaSpec) -> None:
    startup = Startup(provision_s=60, engine_s=30, load_gb_per_s=2.0)
    # Llama-3.1-8B has 8.03 billion parameters, 16.06 GB in bf16
    assert startup.restart_ns(spec) == pytest.approx((30 + 16.06 / 2) * 1e9, rel=0.01)
    assert startup.cold_ns(spec) - startup.restart_ns(spec) == 60 * 10**9
