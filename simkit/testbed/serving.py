"""The measured loop: plan with the engine's compiled scheduler, run the batch for real, book what it took."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simkit.engine.discipline import engine
from simkit.engine.replica import new_replica
from simkit.engine.simulate import load, result_of, span_of
from simkit.engine.state import ABORT, I64, NEXT_ARRIVAL, REQUEST, ROWS, UNFINISHED, Limits, Replica, records
from simkit.engine.stepping import complete, submit
from simkit.errors import InputError
from simkit.metrics.result import RunResult
from simkit.testbed.drafting import Drafting
from simkit.testbed.executor import Executor, Identity
from simkit.testbed.generation import Generation, token_buffers
from simkit.testbed.inputs import planned_spans
from simkit.testbed.prompts import prompt_tokens
from simkit.testbed.torch_executor import first_line
from simkit.testbed.wall_clock import Clock, WallClock
from simkit.workloads.workload import Workload

Plan = Callable[[Replica, int], int]


@dataclass(frozen=True)
class MeasuredStep:
    """One step as it ran; times in ns from the start of the run."""

    schedule_start_ns: int
    schedule_end_ns: int  # the device's part begins: inputs, drafts, forward pass, sampling
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
    outputs: tuple[I64, ...]  # [n] each request's generated token ids
    token_ns: tuple[I64, ...]  # [n] when each of these was delivered
    failure: str = ""  # what ended the run early; "" if nothing did


class StepFailedError(Exception):
    """The executor raised: out of memory, a device that is gone, a kernel that fails. The message names which."""


def serve_measured(
    workload: Workload,
    executor: Executor,
    limits: Limits,
    *,
    discipline: str = "vllm-v1",
    drafting: Drafting | None = None,
    seed: int = 0,
    prompts: Sequence[I64] | None = None,
    clock: Callable[[], Clock] = WallClock,
    on_progress: Callable[[int], None] | None = None,
) -> MeasuredRun:
    """Serve `workload` in real time with greedy sampling; each request generates as many tokens as the workload says.

    `prompts` gives the token ids ([n], as long as the workload's prompts); default random ones of `seed`, equal where
    the workload names equal content. `clock` is started when all is warm. `on_progress` is told how many requests are
    over. A step that fails, or a KeyboardInterrupt, ends the run: what was measured up to there is returned, with
    `failure` set.

    Raises:
        InputError: asynchronous scheduling, which needs two steps in flight; blocks of another size than the
            executor's; speculation without a draft, or the other way round; prompts of wrong lengths.
    """
    _check(limits, executor, drafting)
    limits = limits._replace(content_span=span_of(workload.prefixes, limits))
    ids = prompt_tokens(workload, executor.vocab, seed) if prompts is None else list(prompts)
    _check_prompts(workload, ids, executor.vocab)
    total = workload.prompt_tokens.astype(np.int64) + workload.output_tokens
    rows = np.flatnonzero(total <= limits.max_model_len)
    requests, content_ids = load(workload, rows, limits)
    replica = new_replica(limits, requests, content_ids, records(0, ABORT), executor.num_blocks)
    buffers = token_buffers([ids[row] for row in rows], requests["output"].tolist(), limits.speculative_tokens)
    work = Generation(executor, buffers, drafting)
    log = _Log(rows)
    failure = ""
    try:
        _warm_up(limits, work, engine(discipline).plan)
        _loop(replica, work, engine(discipline).plan, log, clock, on_progress)
    except KeyboardInterrupt:
        failure = f"interrupted after step {len(log.steps)}"
    except StepFailedError as error:
        failure = f"step {len(log.steps) + 1}: {error}"
    result = result_of(replica, workload, rows, not failure)
    outputs, token_ns = log.by_request(workload, buffers)
    facts = (workload, limits, executor.num_blocks, discipline, executor.identity)
    return MeasuredRun(*facts, result, tuple(log.steps), outputs, token_ns, failure=failure)


def _warm_up(limits: Limits, work: Generation, plan: Plan) -> None:
    """Serve one request aside: first calls compile, load and allocate, which is nobody's step time."""
    prompt = max(1, min(limits.max_num_batched_tokens, limits.max_model_len - 3))
    replica = new_replica(
        limits, records(1, REQUEST), np.zeros(0, dtype=np.int64), records(0, ABORT), work.executor.num_blocks
    )
    replica.at[ROWS] = 0
    submit(replica, 0, prompt, 3)
    drafting = None if work.drafting is None else Drafting(work.drafting.executor)
    nonsense = token_buffers([np.zeros(prompt, dtype=np.int64)], [3], limits.speculative_tokens)
    aside = Generation(work.executor, nonsense, drafting)
    _loop(replica, aside, plan, _Log(np.zeros(1, dtype=np.int64)), WallClock, None)


def _loop(
    replica: Replica,
    work: Generation,
    plan: Plan,
    log: "_Log",
    start_clock: Callable[[], Clock],
    on_progress: Callable[[int], None] | None,
) -> None:
    """Serve until nobody is left."""
    at = replica.at
    # what lives now outlives the run: collecting it again and again would be booked as somebody's step
    gc.collect()
    gc.freeze()
    clock = start_clock()
    try:
        while True:
            if at[UNFINISHED] == 0:
                if at[NEXT_ARRIVAL] == at[ROWS]:
                    return
                clock.sleep_until(int(replica.requests["arrival_ns"][at[NEXT_ARRIVAL]]))
            _turn(replica, work, plan, log, clock)
            if on_progress is not None:
                on_progress(int(at[NEXT_ARRIVAL] - at[UNFINISHED]))
    finally:
        gc.unfreeze()


def _turn(replica: Replica, work: Generation, plan: Plan, log: "_Log", clock: Clock) -> None:
    """One step: schedule, run, commit."""
    start = clock.now_ns()
    row = plan(replica, start)
    planned = clock.now_ns()
    if replica.batches["length"][row] == 0:
        complete(replica, row, 0, 0)
        return
    try:
        sampled = work.compute(replica, row)
    except Exception as error:  # torch, Triton and CUDA have no common ancestor for what may happen here
        raise StepFailedError(f"{type(error).__name__}: {first_line(error)}") from error
    done = clock.now_ns()
    work.deliver(replica, row, sampled)
    complete(replica, row, planned - start, done - planned)
    log.add(replica, row, (start, planned, done, clock.now_ns()))


class _Log:
    """What happened, step by step."""

    def __init__(self, rows: I64) -> None:
        self.steps: list[MeasuredStep] = []
        self._rows = rows.tolist()  # of the workload, by request
        self._token_ns: list[list[int]] = [[] for _ in rows]

    def add(self, replica: Replica, row: int, times_ns: tuple[int, int, int, int]) -> None:
        """Note the batch in `row`, complete by now."""
        batches = replica.batches
        spans = planned_spans(replica, row)
        batch = tuple((self._rows[span.request], span.tokens, span.before) for span in spans)
        self.steps.append(MeasuredStep(*times_ns, batch, int(batches["waiting"][row]), int(batches["free"][row])))
        for span in spans:
            if span.samples:
                times = self._token_ns[span.request]
                outputs = int(replica.progress["known"][span.request] - replica.requests["prompt"][span.request])
                times.extend([times_ns[3]] * (outputs - len(times)))

    def by_request(self, workload: Workload, known: list[I64]) -> tuple[tuple[I64, ...], tuple[I64, ...]]:
        """[n] generated ids and [n] their times, in the workload's order; nothing for requests not served."""
        nothing = np.zeros(0, dtype=np.int64)
        outputs, times = [nothing] * len(workload), [nothing] * len(workload)
        for request, row in enumerate(self._rows):
            prompt = int(workload.prompt_tokens[row])
            times[row] = np.array(self._token_ns[request], dtype=np.int64)
            outputs[row] = known[request][prompt : prompt + len(times[row])]
        return tuple(outputs), tuple(times)


def _check(limits: Limits, executor: Executor, drafting: Drafting | None) -> None:
    if limits.pipeline_depth != 1:
        raise InputError(
            "deployment.engine.async_scheduling=true: the testbed runs one step at a time; set it to false"
        )
    if limits.swap_block_ns:
        raise InputError("deployment.engine.preemption_mode=swap: the testbed computes again; set it to recompute")
    if limits.block_size != executor.block_size:
        raise InputError(
            f"deployment.engine.block_size={limits.block_size}: the executor's pool has blocks of "
            f"{executor.block_size} tokens; make both the same"
        )
    if (limits.speculative_tokens > 0) != (drafting is not None):
        raise InputError(
            f"deployment.engine.speculative_tokens={limits.speculative_tokens}: a draft is "
            + ("missing; give one" if drafting is None else "given all the same; leave it out")
        )


def _check_prompts(workload: Workload, prompts: Sequence[I64], vocab: int) -> None:
    lengths = [len(prompt) for prompt in prompts]
    if lengths != workload.prompt_tokens.tolist():
        raise InputError(f"prompts: {len(prompts)} given; one a request is wanted, of the lengths of the workload")
    for row, prompt in enumerate(prompts):
        if len(prompt) and not 0 <= prompt.min() <= prompt.max() < vocab:
            raise InputError(f"prompts: request {row} has ids outside 0 to {vocab - 1}")
