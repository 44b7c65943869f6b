"""Several equal replicas as one deployment: the one place that knows how planning replays a fleet."""

from dataclasses import replace

from simkit.cluster.fleet import serve_fleet
from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.latency import Latencies
from simkit.metrics.slo import GOODPUT, Promise
from simkit.models.steptables import scaled
from simkit.plan.observation import Observation, latencies_of, observe
from simkit.plan.scenario import AS_PLANNED, Scenario, changed
from simkit.plan.sweep import replay
from simkit.plan.traffic import LEAST_REQUESTS, MOST_REQUESTS, replica_share
from simkit.workloads.workload import Workload


def replay_share(
    spec: ReplicaSpec,
    workload: Workload,
    replicas: int,
    rate_per_s: float,
    promise: Promise,
    scenario: Scenario = AS_PLANNED,
    step_time_factor: float = 1.0,
) -> Observation:
    """The fleet as one of its replicas sees it when requests (or sessions) are dealt in turn.

    All replicas are alike then, so one's percentiles are the fleet's; goodput is scaled to the fleet. `replicas` must
    be more than the scenario takes down.
    """
    return share_and_latencies(spec, workload, replicas, rate_per_s, promise, scenario, step_time_factor)[0]


def share_and_latencies(
    spec: ReplicaSpec,
    workload: Workload,
    replicas: int,
    rate_per_s: float,
    promise: Promise,
    scenario: Scenario = AS_PLANNED,
    step_time_factor: float = 1.0,
) -> tuple[Observation, Latencies]:
    """`replay_share`, with the latencies of the requests after the warm-up."""
    up = replicas - scenario.replicas_down
    share = replica_share(workload, up, rate_per_s * scenario.rate_factor)
    share = changed(share, scenario, spec.limits.max_model_len)
    # a promise of so much goodput is the fleet's: a replica owes its part of it
    owed = promise.goodput_per_s
    mine = promise if owed is None else replace(promise, goodput_per_s=owed / up)
    result = replay(spec, share, step_time_factor=step_time_factor * scenario.step_time_factor)
    seen = observe(result.requests, [result], mine)
    seen = replace(seen, figures={**seen.figures, GOODPUT: seen.figures[GOODPUT] * up})
    return seen, latencies_of(result.requests)


def replay_routed(
    spec: ReplicaSpec,
    workload: Workload,
    replicas: int,
    rate_per_s: float,
    promise: Promise,
    router: str,
    step_time_factor: float = 1.0,
    seed: int = 0,
) -> Observation:
    """The whole fleet behind a router by name, every replica replayed."""
    # the share of a fleet of one is all of the workload, gone through as often as the replicas need
    at_rate = replica_share(workload, 1, rate_per_s, LEAST_REQUESTS * replicas, most=10 * MOST_REQUESTS)
    tables = spec.tables if step_time_factor == 1.0 else scaled(spec.tables, step_time_factor)
    fleet = serve_fleet(at_rate, [replace(spec, tables=tables)] * replicas, router, seed)
    if not fleet.complete:
        raise KeyboardInterrupt
    return observe(fleet.requests, fleet.replicas, promise)
