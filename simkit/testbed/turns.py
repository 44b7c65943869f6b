"""The turns of a measured run: schedule a step and have it run; with asynchronous scheduling, while another one runs.

The order of planning and delivering is that of the engine's own turn (`simkit.engine.loop`).
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from simkit.engine.state import FLUSH, IN_FLIGHT, OLDEST, UNFINISHED, Replica
from simkit.engine.stepping import begin, complete, finish
from simkit.testbed.executor import Launched
from simkit.testbed.generation import Generation
from simkit.testbed.run_log import RunLog
from simkit.testbed.torch_executor import first_line
from simkit.testbed.wall_clock import Clock

Plan = Callable[[Replica, int], int]


class StepFailedError(Exception):
    """The executor raised: out of memory, a device that is gone, a kernel that fails. The message names the step."""

    def __init__(self, number: int, error: Exception) -> None:
        """`number` counts steps from 1."""
        super().__init__(f"step {number}: {type(error).__name__}: {first_line(error)}")


class _UnderWay(NamedTuple):
    """A step that was launched."""

    row: int
    start_ns: int  # of scheduling
    ready_ns: int
    launched: Launched


@dataclass
class Turns:
    """What a turn works on."""

    replica: Replica
    work: Generation
    plan: Plan
    log: RunLog
    clock: Clock
    under_way: deque[_UnderWay] = field(default_factory=deque)

    def turn(self) -> None:
        """Plan a step, and deliver the tokens of one; StepFailedError."""
        if self.replica.limits.pipeline_depth == 1:
            self._one_at_a_time()
        else:
            self._overlapping()

    def drop(self) -> None:
        """Let nothing be under way any more; what it would have said is lost."""
        # the later ones first: they must not begin when an earlier one is done
        for step in reversed(self.under_way):
            if not step.launched.cancel():
                with suppress(Exception):
                    step.launched.result()
        self.under_way.clear()

    def _one_at_a_time(self) -> None:
        """Schedule, run, commit. The making of inputs, and drafts, are the device's time."""
        replica = self.replica
        start = self.clock.now_ns()
        row = self.plan(replica, start)
        planned = self.clock.now_ns()
        if replica.batches["length"][row] == 0:
            complete(replica, row, 0, 0)
            return
        try:
            sampled = self.work.compute(replica, row)
        except Exception as error:  # torch, Triton and CUDA have no common ancestor for what may happen here
            raise StepFailedError(len(self.log.steps) + 1, error) from error
        done = self.clock.now_ns()
        self.work.deliver(replica, row, sampled)
        complete(replica, row, planned - start, done - planned)
        self.log.add(replica, row, (start, planned, done, self.clock.now_ns()))

    def _overlapping(self) -> None:
        """Schedule and launch, then, unless the device would have nothing after it, wait for the oldest launched."""
        replica, at = self.replica, self.replica.at
        if at[UNFINISHED] > 0 or at[FLUSH] == 1 or at[IN_FLIGHT] == 0:
            row = self._begin()
            if replica.batches["length"][row] > 0 and at[IN_FLIGHT] < replica.limits.pipeline_depth:
                return
        if replica.batches["length"][at[OLDEST]] == 0:
            finish(replica)
        else:
            self._deliver(self.under_way.popleft())

    def _begin(self) -> int:
        """Plan a step and launch it if somebody is in it; returns its row."""
        replica = self.replica
        start = self.clock.now_ns()
        row = self.plan(replica, start)
        if replica.batches["length"][row] == 0:
            self.log.idle_plans_ns.append(start)
            begin(replica, row, 0, 0)
            return row
        try:
            ready, launched = self.work.launch(replica, row, self.clock.now_ns)
        except Exception as error:
            raise StepFailedError(len(self.log.steps) + len(self.under_way) + 1, error) from error
        # how long it takes nobody knows yet: the books are kept when the run is over (`replay.booked`)
        begin(replica, row, ready - start, 0)
        self.under_way.append(_UnderWay(row, start, ready, launched))
        return row

    def _deliver(self, step: _UnderWay) -> None:
        """Wait for a step, and commit it."""
        replica = self.replica
        try:
            finished = step.launched.result()
        except Exception as error:
            raise StepFailedError(len(self.log.steps) + 1, error) from error
        self.work.deliver(replica, step.row, finished.tokens)
        replica.batches["end"][step.row] = finished.at_ns
        finish(replica)
        times = (step.start_ns, step.ready_ns, finished.at_ns, self.clock.now_ns())
        self.log.add(replica, step.row, times)
