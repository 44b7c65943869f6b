"""The most that a run's configuration can take: where each of its stages stands on the curve of load."""

import numpy as np

from simkit.fidelity.deployments import deployment_of
from simkit.fidelity.measured_runs import MeasuredRun, SharedPrefixLoad
from simkit.fidelity.predict import Timing, replay, timed
from simkit.fidelity.shared_prefix import shared_prefix_workload
from simkit.metrics.result import Status

ROUNDS = 12  # of max_num_seqs requests, all there from the start
FLOOD_PER_S = 1e5


def knee_per_s(run: MeasuredRun, timing: Timing | None = None) -> float:
    """Requests/s that the replica completes when there is always one more waiting: no steady load is above it.

    Measured on the replay of a flood, between a quarter and three quarters of its ends, so that neither the filling
    nor the emptying of the batch counts. Raises InputError as `predict_run` does.
    """
    spec = timed(deployment_of(run), timing or Timing())
    count = ROUNDS * spec.limits.max_running
    flood = SharedPrefixLoad.model_validate(
        run.workload_spec.model_dump() | {"stages": [[FLOOD_PER_S, count / FLOOD_PER_S]]}
    )
    workload = shared_prefix_workload(flood, run.output_tokens, run.id).workload
    result = replay(spec, workload)
    ends = np.sort(result.requests.finish_ns[result.requests.status == Status.FINISHED]) / 1e9
    low, high = len(ends) // 4, 3 * len(ends) // 4
    return float((high - low) / (ends[high] - ends[low]))
