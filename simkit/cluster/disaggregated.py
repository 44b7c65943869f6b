"""A fleet whose prefill and decode pools are apart serves a workload, and nothing else happens."""

from collections.abc import Callable, Sequence

import numpy as np

from simkit.cluster.apart import is_plain, serve_apart
from simkit.cluster.handover import Disaggregation
from simkit.cluster.live import Rules, serve_live
from simkit.cluster.moving import Moving
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.errors import InputError
from simkit.workloads.workload import Workload


def serve_disaggregated(
    workload: Workload,
    members: Sequence[Member],
    settings: Disaggregation,
    on_progress: Callable[[int], None] | None = None,
) -> FleetResult:
    """Serve `workload` by replicas that are all there from start to end; they belong to the pools in `settings`.

    A request is rejected if it is too long for any of them. In the result a request's replica is its decode replica;
    its waterfall is that of its whole way: `transfer_ns` is what its KV adds, waiting for room and at the gateway is in
    `queue_ns`. A KeyboardInterrupt ends the run: the result says so.

    Raises InputError for pools that are missing or that do not go together, or a link that is not known.
    """
    if not members:
        raise InputError("disaggregation: no replicas; give each pool at least one")
    if is_plain(settings, members):
        return serve_apart(workload, members, settings, on_progress)
    nobody_draws = np.random.default_rng(0)
    moving = Moving(apart=settings)
    return serve_live(
        workload, members, "disaggregated", None, Rules(), nobody_draws, on_progress=on_progress, moving=moving
    )
