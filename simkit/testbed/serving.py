"""The measured loop: plan with the engine's compiled scheduler, run the batch for real, book what it took."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from simkit.engine.discipline import engine
from simkit.engine.replica import new_replica
from simkit.engine.simulate import load, result_of, span_of
from simkit.engine.state import (
    ABORT,
    FLUSH,
    I64,
    IN_FLIGHT,
    NEXT_ARRIVAL,
    REQUEST,
    ROWS,
    UNFINISHED,
    Limits,
    Replica,
    records,
)
from simkit.engine.stepping import submit
from simkit.errors import InputError
from simkit.testbed.drafting import Drafting
from simkit.testbed.executor import Executor
from simkit.testbed.generation import Generation, token_buffers
from simkit.testbed.measured import MeasuredRun
from simkit.testbed.prompts import prompt_tokens
from simkit.testbed.replay import booked
from simkit.testbed.run_log import RunLog
from simkit.testbed.turns import Plan, StepFailedError, Turns
from simkit.testbed.wall_clock import Clock, WallClock
from simkit.workloads.workload import Workload


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
    warm_up: bool = True,
) -> MeasuredRun:
    """Serve `workload` in real time with greedy sampling; each request generates as many tokens as the workload says.

    `prompts` gives the token ids ([n], as long as the workload's prompts); default random ones of `seed`, equal where
    the workload names equal content. `clock` is started when all is warm: without `warm_up` the executor is, because it
    has just served. `on_progress` is told how many requests are over. A step that fails, or a KeyboardInterrupt, ends
    the run: what was measured up to there is returned, with `failure` set.

    Raises:
        InputError: more than two steps in flight; blocks of another size than the executor's; speculation without a
            draft, or the other way round, or with asynchronous scheduling; prompts of wrong lengths.
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
    log = RunLog(rows)
    failure = ""
    try:
        if warm_up:
            _warm_up(limits, work, engine(discipline).plan)
        _loop(replica, work, engine(discipline).plan, log, clock, on_progress)
    except KeyboardInterrupt:
        failure = f"interrupted after step {len(log.steps)}"
    except StepFailedError as error:
        failure = str(error)
    result = result_of(replica, workload, rows, not failure)
    outputs, token_ns = log.by_request(workload, buffers)
    facts = (workload, limits, executor.num_blocks, discipline, executor.identity)
    notes = (tuple(log.steps), tuple(log.idle_plans_ns), outputs, token_ns)
    run = MeasuredRun(*facts, result, *notes, failure=failure)
    return replace(run, result=booked(run)) if run.asynchronous else run


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
    _loop(replica, aside, plan, RunLog(np.zeros(1, dtype=np.int64)), WallClock, None)


def _loop(
    replica: Replica,
    work: Generation,
    plan: Plan,
    log: RunLog,
    start_clock: Callable[[], Clock],
    on_progress: Callable[[int], None] | None,
) -> None:
    """Serve until nobody is left."""
    at = replica.at
    # what lives now outlives the run: collecting it again and again would be booked as somebody's step
    gc.collect()
    gc.freeze()
    clock = start_clock()
    turns = Turns(replica, work, plan, log, clock)
    try:
        while True:
            if at[UNFINISHED] == 0 and at[IN_FLIGHT] == 0 and at[FLUSH] == 0:
                if at[NEXT_ARRIVAL] == at[ROWS]:
                    return
                clock.sleep_until(int(replica.requests["arrival_ns"][at[NEXT_ARRIVAL]]))
            turns.turn()
            if on_progress is not None:
                on_progress(int(at[NEXT_ARRIVAL] - at[UNFINISHED]))
    finally:
        turns.drop()
        gc.unfreeze()


def _check(limits: Limits, executor: Executor, drafting: Drafting | None) -> None:
    if limits.stages > 1 or limits.pipeline_depth > 2:
        raise InputError(
            f"deployment.layout.pipeline={limits.stages}: the testbed runs on one device; set it to 1, or leave it out"
        )
    if limits.pipeline_depth == 2 and limits.speculative_tokens > 0:
        raise InputError(
            f"deployment.engine.speculative_tokens={limits.speculative_tokens}: not with asynchronous scheduling; "
            "set async_scheduling: false"
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
