"""A measured run once more through the compiled engine: the same decisions when given the log's times, step by step.

And, while the engine stands at each of the run's own batches, how long the step-time tables say that it takes: the
error of the tables alone, with no queue in between.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from simkit.engine.discipline import engine
from simkit.engine.replica import new_replica
from simkit.engine.simulate import load, result_of, simulate, span_of
from simkit.engine.state import ABORT, DEVICE_FREE, I64, IN_FLIGHT, Replica, records
from simkit.engine.stepping import begin, expected_ns, finish
from simkit.metrics.comparison import DECODE, MIXED, PREFILL, StepTimes
from simkit.metrics.result import RunResult
from simkit.models.steptables import StepTables
from simkit.testbed.inputs import planned_spans
from simkit.testbed.measured import MeasuredRun, MeasuredStep


@dataclass(frozen=True)
class Replay:
    """What the engine did when it was given the log's times."""

    identical: int  # leading steps with the same batch, waiting requests and free blocks
    difference: str  # what the first other step is; "" if all are the same
    finish_ns: I64  # [requests served] ends by the engine's books, 0 for those not over
    result: RunResult  # by the engine's books, as far as the steps are identical
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
    difference, identical = "", 0
    for planned_ns, step in _plans(run):
        row = plan(replica, planned_ns)
        if step is not None and tables is not None:
            expected.append(expected_ns(replica, tables, row))
        begin(replica, row, *_durations_ns(replica, step))
        difference = _difference(replica, row, rows, step)
        if difference:
            difference = f"step {identical + 1}: {difference}"
            break
        identical += step is not None
        if step is None or replica.at[IN_FLIGHT] == limits.pipeline_depth:
            finish(replica)
    while not difference and replica.at[IN_FLIGHT]:
        finish(replica)
    times = None if tables is None else step_times(run, identical, expected)
    result = result_of(replica, run.workload, rows, not (run.failure or difference))
    return Replay(identical, difference, replica.ledger["finish"].copy(), result, times)


def booked(run: MeasuredRun) -> RunResult:
    """The engine's books of a run with asynchronous scheduling, in which a step is planned before the last one's end.

    Where the engine does not plan the same again (a discipline that decides by the books themselves), they are those
    kept while it ran: ends and tokens in time, but no parts.
    """
    again = replay(run)
    return run.result if again.difference else again.result


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
        device_ns=run.device_ns()[:count],
        host_ns=_host_ns(run, count),
        expected_device_ns=told[:, 1],
        expected_host_ns=told[:, 0],
    )


def _plans(run: MeasuredRun) -> Iterator[tuple[int, MeasuredStep | None]]:
    """When the scheduler was asked, in order, and the step that it gave; None where it had nobody."""
    idle = list(run.idle_plans_ns)
    for step in run.steps:
        while idle and idle[0] < step.schedule_start_ns:
            yield idle.pop(0), None
        yield step.schedule_start_ns, step


def _durations_ns(replica: Replica, step: MeasuredStep | None) -> tuple[int, int]:
    """(host, device) time of a step, which the device begins when it is done with the one before."""
    if step is None:
        return 0, 0
    begins = max(step.schedule_end_ns, int(replica.at[DEVICE_FREE]))
    return step.schedule_end_ns - step.schedule_start_ns, step.update_start_ns - begins


def _kind(run: MeasuredRun, step: MeasuredStep) -> int:
    decodes = [before >= run.workload.prompt_tokens[row] for row, _, before in step.batch]
    return DECODE if all(decodes) else MIXED if any(decodes) else PREFILL


def _host_ns(run: MeasuredRun, count: int) -> I64:
    """From when a step's tokens were known, and the host free, to when the next one scheduled was ready; -1 where the
    engine idled in between."""
    host = np.full(count, -1, dtype=np.int64)
    behind = run.limits.pipeline_depth  # the step scheduled upon the tokens of step i is i + behind
    for i in range(behind, count):
        known, last, step = run.steps[i - behind], run.steps[i - 1], run.steps[i]
        # somebody of the step before is in this one: the engine went on without waiting for an arrival
        went_on = {row for row, _, _ in last.batch} & {row for row, _, _ in step.batch}
        overlapped = behind == 1 or (
            last.schedule_start_ns <= known.update_start_ns and step.schedule_start_ns <= last.update_end_ns
        )
        if went_on and overlapped:
            free = known.update_start_ns if behind == 1 else max(known.update_start_ns, last.schedule_end_ns)
            host[i] = step.schedule_end_ns - free
    return host


def _difference(replica: Replica, row: int, rows: I64, step: MeasuredStep | None) -> str:
    """What the engine planned in `row` otherwise than the log has it; "" if nothing."""
    batch = tuple((int(rows[s.request]), s.tokens, s.before) for s in planned_spans(replica, row))
    if step is None:
        return f"the engine plans {batch}, where the run had nobody to schedule" if batch else ""
    if batch != step.batch:
        return f"the engine plans {batch}, the log has {step.batch}"
    counts = (int(replica.batches["waiting"][row]), int(replica.batches["free"][row]))
    if counts != (step.waiting, step.free_blocks):
        return f"(waiting, free blocks) are {counts}, the log has {(step.waiting, step.free_blocks)}"
    return ""
