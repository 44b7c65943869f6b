"""Several equal replicas as one deployment: the one place that knows how planning replays a fleet."""

from dataclasses import replace

from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.metrics.latency import Latencies
from simkit.metrics.slo import GOODPUT, Promise
from simkit.plan.observation import Observation, latencies_of, observe
from simkit.plan.scenario import AS_PLANNED, Scenario, changed
from simkit.plan.traffic import LEAST_REQUESTS, MOST_REQUESTS, replica_share
from simkit.plan.unit import Group, Served, Unit, serve, serve_groups
from simkit.workloads.workload import Workload


def replay_share(
    spec: Unit,
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
    return share_served(spec, workload, replicas, rate_per_s, promise, scenario, step_time_factor)[0]


def share_and_latencies(
    spec: Unit,
    workload: Workload,
    replicas: int,
    rate_per_s: float,
    promise: Promise,
    scenario: Scenario = AS_PLANNED,
    step_time_factor: float = 1.0,
) -> tuple[Observation, Latencies]:
    """`replay_share`, with the latencies of the requests after the warm-up."""
    seen, served = share_served(spec, workload, replicas, rate_per_s, promise, scenario, step_time_factor)
    return seen, latencies_of(served.requests)


def share_served(
    spec: Unit,
    workload: Workload,
    replicas: int,
    rate_per_s: float,
    promise: Promise,
    scenario: Scenario = AS_PLANNED,
    step_time_factor: float = 1.0,
) -> tuple[Observation, Served]:
    """`replay_share`, with all that the replica did."""
    up = replicas - scenario.replicas_down
    share = replica_share(workload, up, rate_per_s * scenario.rate_factor)
    share = changed(share, scenario, spec.limits.max_model_len)
    # a promise of so much goodput is the fleet's: a replica owes its part of it
    owed = promise.goodput_per_s
    mine = promise if owed is None else replace(promise, goodput_per_s=owed / up)
    served = serve(spec, share, step_time_factor * scenario.step_time_factor)
    seen = observe(served.requests, served.runs, mine)
    return replace(seen, figures={**seen.figures, GOODPUT: seen.figures[GOODPUT] * up}), served


def replay_routed(
    unit: Unit,
    workload: Workload,
    units: int,
    rate_per_s: float,
    promise: Promise,
    door: Cluster,
    seed: int = 0,
) -> Observation:
    """The whole fleet behind its door, every replica replayed; groups all behind one gateway of their own.

    Requests that the door turned away or that their clients gave up are a miss, as those longer than the context.
    """
    # the share of a fleet of one is all of the workload, gone through as often as the replicas need
    at_rate = replica_share(workload, 1, rate_per_s, LEAST_REQUESTS * units, most=10 * MOST_REQUESTS)
    if isinstance(unit, Group):
        fleet = serve_groups(unit, units, at_rate)
    else:
        fleet = serve_cluster(at_rate, door.model_copy(update={"replicas": units}), lambda _: unit, seed)
    if not fleet.complete:
        raise KeyboardInterrupt
    return observe(fleet.requests, fleet.replicas, promise)
