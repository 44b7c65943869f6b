"""A measured run once more through the compiled engine: the same decisions when given the log's times, step by step.

And, while the engine stands at each of the run's own batches, how long the step-time tables say that it takes: the
error of the tables alone, with no queue in between.
"""

from dataclasses import dataclass

import numpy as np

from simkit.engine.discipline import engine
from simkit.engine.replica import new_replica
from simkit.engine.simulate import load, simulate, span_of
from simkit.engine.state import ABORT, I64, Replica, records
from simkit.engine.stepping import complete, expected_ns
from simkit.metrics.comparison import DECODE, MIXED, PREFILL, StepTimes
from simkit.metrics.result import RunResult
from simkit.models.steptables import StepTables
from simkit.testbed.inputs import planned_spans
from simkit.testbed.serving import MeasuredRun, MeasuredStep


@dataclass(frozen=True)
class Replay:
    """What the engine did when it was given the log's times."""

    identical: int  # leading steps with the same batch, waiting requests and free blocks
    difference: str  # what the first other step is; "" if all are the same
    finish_ns: I64  # [requests served] ends by the engine's books, 0 for those not over
    steps: StepTimes | None  # with tables: the identical steps beside their prediction


def replay(run: MeasuredRun, tables: StepTables | None = None) -> Replay:
    """Plan each step at the log's time, compare it with the log's, book the log's durations."""
    limits = run.limits._replace(content_span=span_of(run.workload.prefixes, run.limits))
    total = run.workload.prompt_tokens.astype(np.int64) + run.workload.output_tokens
    rows = np.flatnonzero(total <= limits.max_model_len)
    requests, content = load(run.workload, rows, limits)
    replica = new_replica(limits, requests, content, records(0, ABORT), run.num_blocks)
    plan = engine(run.discipline).plan
    expected: list[tuple[int, int]] = []
    difference = ""
    for number, step in enumerate(run.steps, start=1):
        row = plan(replica, step.schedule_start_ns)
        if tables is not None:
            expected.append(expected_ns(replica, tables, row))
        scheduled_ns = step.schedule_end_ns - step.schedule_start_ns
        device_ns = step.update_start_ns - step.schedule_end_ns
        complete(replica, row, scheduled_ns, device_ns)
        difference = _difference(replica, row, rows, step)
        if difference:
            difference = f"step {number}: {difference}"
            break
    identical = number - 1 if difference else len(run.steps)
    times = None if tables is None else step_times(run, identical, expected)
    return Replay(identical, difference, replica.ledger["finish"].copy(), times)


def predicted(run: MeasuredRun, tables: StepTables) -> RunResult:
    """The same arrivals served on the virtual clock."""
    return simulate(run.workload, run.limits, tables, run.num_blocks, discipline=run.discipline)


def step_times(run: MeasuredRun, count: int, expected: list[tuple[int, int]]) -> StepTimes:
    """The first `count` steps of a run, measured beside the (host, device) ns expected of each."""
    steps = run.steps[:count]
    told = np.array(expected[:count], dtype=np.int64).reshape(-1, 2)
    return StepTimes(
        kind=np.array([_kind(run, step) for step in steps], dtype=np.int8),
        start_ns=np.array([step.schedule_start_ns for step in steps], dtype=np.int64),
        tokens=np.array([sum(new for _, new, _ in step.batch) for step in steps], dtype=np.int64),
        device_ns=np.array([step.update_start_ns - step.schedule_end_ns for step in steps], dtype=np.int64),
        host_ns=_host_ns(run, count),
        expected_device_ns=told[:, 1],
        expected_host_ns=told[:, 0],
    )


def _kind(run: MeasuredRun, step: MeasuredStep) -> int:
    decodes = [before >= run.workload.prompt_tokens[row] for row, _, before in step.batch]
    return DECODE if all(decodes) else MIXED if any(decodes) else PREFILL


def _host_ns(run: MeasuredRun, count: int) -> I64:
    """Scheduling, and from the step before what lies between its tokens and this step; -1 where the engine idled."""
    host = np.full(count, -1, dtype=np.int64)
    alive = {row for row, _, _ in run.steps[0].batch} if run.steps else set()
    for i in range(1, count):
        before, step = run.steps[i - 1], run.steps[i]
        # somebody of the step before is in this one: the engine went on without waiting for an arrival
        if alive & {row for row, _, _ in step.batch}:
            host[i] = step.schedule_end_ns - before.update_start_ns
        alive = {row for row, _, _ in step.batch}
    return host


def _difference(replica: Replica, row: int, rows: I64, step: MeasuredStep) -> str:
    """What the engine planned in `row` otherwise than the log has it; "" if nothing."""
    batch = tuple((int(rows[s.request]), s.tokens, s.before) for s in planned_spans(replica, row))
    if batch != step.batch:
        return f"the engine plans {batch}, the log has {step.batch}"
    counts = (int(replica.batches["waiting"][row]), int(replica.batches["free"][row]))
    if counts != (step.waiting, step.free_blocks):
        return f"(waiting, free blocks) are {counts}, the log has {(step.waiting, step.free_blocks)}"
    return ""
