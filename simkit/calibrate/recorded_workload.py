"""The requests of a recorded run as a workload, to be replayed beside what was measured."""

import numpy as np

from simkit.calibrate.step_log import StepLog
from simkit.errors import InputError
from simkit.workloads.workload import Workload


def recorded_workload(log: StepLog) -> Workload:
    """The run's requests with their times and lengths; InputError if the log has no request lines."""
    if not log.requests:
        raise InputError(f"{log.path}: holds no request line, so there is nothing to replay; record requests too")
    return Workload(
        name=log.path.name.split(".")[0],
        arrival_us=np.array([round(line.arrival * 1e6) for line in log.requests], dtype=np.int64),
        prompt_tokens=np.array([line.prompt_tokens for line in log.requests], dtype=np.int32),
        output_tokens=np.array([line.output_tokens for line in log.requests], dtype=np.int32),
        request_id=tuple(line.id for line in log.requests),
        source=str(log.path),
    )
