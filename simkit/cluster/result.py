"""What a fleet did with a workload: each replica's own result, and whose request went where."""

from dataclasses import dataclass, fields

import numpy as np

from simkit.engine.state import I32, I64
from simkit.metrics.result import RequestColumns, RunResult
from simkit.workloads.workload import Workload


@dataclass(frozen=True)
class FleetResult:
    """A replica's result has its own requests only, in order of arrival; `requests` has all, in the workload's."""

    router: str
    replicas: tuple[RunResult, ...]
    requests: RequestColumns  # [n] of the whole workload
    replica_of: I32  # [n] the replica a request was sent to; -1: not sent before the run was interrupted
    row_of: I64  # [n] its row in that replica's result; meaningless where `replica_of` is -1

    @property
    def complete(self) -> bool:
        """Whether every request was served or turned away."""
        return bool((self.replica_of >= 0).all()) and all(result.complete for result in self.replicas)


def fleet_result(router: str, workload: Workload, parts: list[tuple[I64, RunResult]]) -> FleetResult:
    """The whole from each replica's rows of the workload and its result over them."""
    n = len(workload)
    replica_of = np.full(n, -1, dtype=np.int32)
    row_of = np.zeros(n, dtype=np.int64)
    for replica, (rows, _) in enumerate(parts):
        replica_of[rows] = replica
        row_of[rows] = np.arange(len(rows))
    return FleetResult(router, tuple(result for _, result in parts), _merged(workload, parts), replica_of, row_of)


def _merged(workload: Workload, parts: list[tuple[I64, RunResult]]) -> RequestColumns:
    """The replicas' columns in the workload's order; what was never sent stays unfinished, all times 0."""
    n = len(workload)
    columns: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.signedinteger]]] = {
        "arrival_ns": workload.arrival_us * 1000,
        "prompt_tokens": workload.prompt_tokens,
        "output_tokens": workload.output_tokens,
    }
    for name in (field.name for field in fields(RequestColumns)):
        if name == "request_id" or name in columns:
            continue
        columns[name] = np.zeros(n, dtype=getattr(parts[0][1].requests, name).dtype)
        for rows, result in parts:
            columns[name][rows] = getattr(result.requests, name)
    return RequestColumns(request_id=workload.request_id, **columns)
