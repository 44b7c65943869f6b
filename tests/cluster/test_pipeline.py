"""Replicas with pipeline stages in a fleet: the three ways to run it have one result."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from same import assert_same_fleet

from simkit.cluster.fleet import named_router, serve_fleet
from simkit.cluster.live import Rules, serve_live
from simkit.cluster.roster import Member
from simkit.cluster.routers import Router
from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.result import WATERFALL
from simkit.models.layout import Layout
from simkit.models.step_law import with_stages
from simkit.workloads.streams import streams
from simkit.workloads.workload import Workload

Chats = Callable[[int, float, int], Workload]


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding", "power_of_two"])
def test_dealt_routed_and_on_the_clock_agree(spec: ReplicaSpec, chats: Chats, router: str) -> None:
    staged = [
        replace(
            spec,
            limits=spec.limits._replace(stages=stages, pipeline_depth=max(2, stages)),
            tables=with_stages(spec.tables, spec.architecture, Layout(pipeline=stages)),
        )
        for stages in (3, 1, 4)
    ]
    workload = chats(250, 60.0, 7)
    fleet = serve_fleet(workload, staged, router, 1)
    name, chosen, _ = named_router(router, 1)
    assert isinstance(chosen, Router)
    on_the_clock = serve_live(workload, [Member(one) for one in staged], name, chosen, Rules(), streams(1, 2)[1])
    assert_same_fleet(fleet, on_the_clock)
    found = fleet.requests
    parts = [getattr(found, part) for part in WATERFALL]
    assert (sum(parts) == found.finish_ns - found.arrival_ns).all()
    assert min(int(part.min()) for part in parts) >= 0
