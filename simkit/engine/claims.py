"""What a workload's optional columns say of each request, as schedulers see it: by when, and for whom."""

import numpy as np
from numpy.typing import NDArray

from simkit.engine.state import NEVER
from simkit.workloads.workload import ExtraColumn, Workload

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]


def deadlines_ns(workload: Workload, rows: I64) -> I64:
    """[rows] ns, when each should be over: `deadline_us` after its arrival, else `ttft_slo_us` after it, else NEVER.

    Both columns are durations (the trace schema); a target for the first token is the deadline of who has no other.
    """
    arrival_ns = workload.arrival_us[rows] * 1000
    allowed = _durations_us(workload, "deadline_us", rows)
    allowed = np.where(allowed < 0, _durations_us(workload, "ttft_slo_us", rows), allowed)
    return np.where(allowed < 0, NEVER, arrival_ns + np.minimum(allowed, (NEVER - arrival_ns) // 1000) * 1000)


def _durations_us(workload: Workload, name: str, rows: I64) -> I64:
    """[rows] microseconds, -1 where the column does not say."""
    column: ExtraColumn | None = workload.extra.get(name)
    if column is None:
        return np.full(len(rows), -1, dtype=np.int64)
    return np.array([-1 if value is None else int(value) for value in column], dtype=np.int64)[rows]


def tenant_numbers(workload: Workload, rows: I64) -> I32:
    """[rows] a number for each tenant: by `tenant_id`, else `client_id`; one tenant where the workload names none."""
    column = workload.extra.get("tenant_id") or workload.extra.get("client_id")
    if column is None:
        return np.zeros(len(rows), dtype=np.int32)
    names = np.array(["" if value is None else str(value) for value in column])[rows]
    return np.unique(names, return_inverse=True)[1].astype(np.int32)
