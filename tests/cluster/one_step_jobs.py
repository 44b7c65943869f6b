"""Requests whose service is one step of known length, and what became of them."""

import numpy as np

from simkit.cluster.result import FleetResult
from simkit.metrics.result import Status
from simkit.workloads.workload import Workload


def jobs(arrival_ms: list[int], service_ms: list[int], priority: list[int] | None = None) -> Workload:
    """Requests of one step each: the single server takes 1 us a prompt token."""
    return Workload(
        name="jobs",
        arrival_us=np.array(arrival_ms, dtype=np.int64) * 1000,
        prompt_tokens=np.array(service_ms, dtype=np.int32) * 1000,
        output_tokens=np.ones(len(arrival_ms), dtype=np.int32),
        priority=None if priority is None else np.array(priority, dtype=np.int32),
    )


def statuses(fleet: FleetResult) -> list[str]:
    return [Status(value).name.lower() for value in fleet.requests.status]
