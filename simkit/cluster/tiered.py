"""A fleet with KV tiers behind its device caches serves a workload, and nothing else happens."""

from collections.abc import Callable, Sequence

import numpy as np

from simkit.cluster.live import Rules, serve_live
from simkit.cluster.moving import Moving
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.routers import Router
from simkit.cluster.tiers import Tier
from simkit.workloads.workload import Workload


def serve_tiered(
    workload: Workload,
    members: Sequence[Member],
    tiers: Sequence[Tier],
    name: str,
    router: Router,
    on_progress: Callable[[int], None] | None = None,
) -> FleetResult:
    """Serve `workload` by replicas that are all there from start to end, behind `router`, which is called `name`.

    In the result `transfer_ns` is the time in which a request's prefix came from a tier; `hit_tokens` counts these too,
    a replica's own result only what its device had. A KeyboardInterrupt ends the run: the result says so.

    Raises InputError for replicas that cannot share KV, or a link that is not known.
    """
    nobody_draws = np.random.default_rng(0)
    moving = Moving(tiers=tuple(tiers))
    return serve_live(workload, members, name, router, Rules(), nobody_draws, on_progress=on_progress, moving=moving)
