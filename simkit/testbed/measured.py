"""What was measured: the steps of a run as they happened, and the run as a whole."""

from dataclasses import dataclass

import numpy as np

from simkit.engine.state import I64, Limits
from simkit.metrics.result import RunResult
from simkit.testbed.executor import Identity
from simkit.workloads.workload import Workload


@dataclass(frozen=True)
class MeasuredStep:
    """One step as it ran; times in ns from the start of the run.

    With asynchronous scheduling the device may still be busy with the step before when this one is ready for it.
    """

    schedule_start_ns: int
    schedule_end_ns: int  # ready for the device; the making of inputs comes after it where one step runs at a time
    update_start_ns: int  # tokens are known
    update_end_ns: int  # and delivered
    batch: tuple[tuple[int, int, int], ...]  # (row of the workload, tokens scheduled, tokens computed before)
    waiting: int  # requests, after scheduling
    free_blocks: int  # after scheduling


@dataclass(frozen=True)
class MeasuredRun:
    """A workload served for real."""

    workload: Workload
    limits: Limits
    num_blocks: int
    discipline: str
    identity: Identity
    result: RunResult  # by the engine's own books, with measured durations
    steps: tuple[MeasuredStep, ...]
    idle_plans_ns: tuple[int, ...]  # when the scheduler was asked and found nobody to schedule, ascending
    outputs: tuple[I64, ...]  # [n] each request's generated token ids
    token_ns: tuple[I64, ...]  # [n] when each of these was delivered
    failure: str = ""  # what ended the run early; "" if nothing did

    @property
    def asynchronous(self) -> bool:
        """Whether a step was scheduled while the one before ran."""
        return self.limits.pipeline_depth > 1

    def device_ns(self) -> I64:
        """[steps] from when the device could begin a step, the one before being done, to when its tokens were known."""
        done = np.array([step.update_start_ns for step in self.steps], dtype=np.int64)
        ready = np.array([step.schedule_end_ns for step in self.steps], dtype=np.int64)
        ready[1:] = np.maximum(ready[1:], done[:-1])
        taken: I64 = done - ready
        return taken
