"""A fleet serves a workload: requests arrive, a router sends each to a replica, replicas run as far as routing needs.

Three ways with one result: routing that does not look at the load gives each replica its whole share at once (`dealt`);
a router that the compiled loop knows runs in it (`routed`); all others, and everything that has processes, run on
SimPy's clock (`live`).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from simkit.cluster.dealt import serve_dealt
from simkit.cluster.live import Rules, serve_live
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.routed import serve_routed
from simkit.cluster.routers import BlindRouter, Router, Rule, new_router
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.discipline import DISCIPLINES
from simkit.errors import InputError
from simkit.workloads.streams import streams
from simkit.workloads.workload import Workload


def serve_fleet(
    workload: Workload,
    specs: Sequence[ReplicaSpec],
    router: str | Mapping[str, object] | Router | BlindRouter,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
    processes: int = 1,
) -> FleetResult:
    """Serve `workload` on one replica for each of `specs`, which may differ, all there from start to end.

    `router` is what `simkit.cluster.routers.new_router` takes, or an object of one's own; `seed` feeds the named ones
    that draw. `on_progress` is told now and then how many requests were sent on. `processes` more than 1 are used
    where routing does not look at the load. A KeyboardInterrupt in the middle ends the run: the result holds what was
    done and says that it is not complete. Raises InputError for no replicas, an unknown router, or a router that names
    a replica that is not there.
    """
    if not specs:
        raise InputError("fleet: replicas=0; a fleet needs at least one")
    name, chosen, rng = named_router(router, seed)
    together = any(spec.deployment.layout.data > 1 for spec in specs)  # who shares experts runs on the clock
    if isinstance(chosen, BlindRouter) and not together:
        return serve_dealt(workload, specs, name, chosen, on_progress, processes)
    if not isinstance(chosen, Router):
        raise InputError(f"router {name}: has no choose(request, fleet), which engines that share experts need; add it")
    rule = compiled_rule(chosen, specs)
    if rule is not None and not together:
        return serve_routed(workload, specs, name, rule, rng, on_progress)
    members = [Member(spec) for spec in specs]
    return serve_live(workload, members, name, chosen, Rules(), streams(seed, 2)[1], on_progress=on_progress)


def named_router(
    router: str | Mapping[str, object] | Router | BlindRouter, seed: int
) -> tuple[str, Router | BlindRouter, np.random.Generator]:
    """A router's name for results and messages, the router, and the random stream that it draws from."""
    rng = streams(seed, 2)[0]
    if isinstance(router, str):
        return router, new_router(router, rng), rng
    if isinstance(router, Mapping):
        return str(router.get("kind", "")), new_router(router, rng), rng
    return type(router).__name__, router, rng


def compiled_rule(router: Router, specs: Sequence[ReplicaSpec]) -> Rule | None:
    """The rule by which the compiled loop can run this router over these replicas; None if it cannot."""
    rule = getattr(router, "rule", None)
    disciplines = {spec.deployment.engine.discipline for spec in specs}
    alone = len(disciplines) == 1 and disciplines <= set(DISCIPLINES)
    return rule if isinstance(rule, Rule) and alone else None
