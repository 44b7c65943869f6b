"""The measured loop: plan with the engine's compiled scheduler, run the batch for real, book what it took."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simkit.engine.replica import new_replica
from simkit.engine.simulate import load, result_of, span_of
from simkit.engine.state import ABORT, I64, NEXT_ARRIVAL, REQUEST, ROWS, UNFINISHED, Limits, Replica, records
from simkit.engine.stepping import complete, plan, submit
from simkit.errors import InputError
from simkit.metrics.result import RunResult
from simkit.testbed.decoder import Decoder, run_step
from simkit.testbed.inputs import StepInputs, step_inputs
from simkit.testbed.paged_attention import new_cache
from simkit.testbed.prompts import prompt_tokens
from simkit.testbed.wall_clock import Clock, WallClock
from simkit.workloads.workload import Workload


@dataclass(frozen=True)
class MeasuredStep:
    """One step as it ran; times in ns from the start of the run."""

    schedule_start_ns: int
    schedule_end_ns: int  # the device's part begins: inputs, forward pass, sampling
    update_start_ns: int  # tokens are known
    update_end_ns: int  # and delivered
    batch: tuple[tuple[int, int, int], ...]  # (row of the workload, tokens scheduled, tokens computed before)
    waiting: int  # requests, after scheduling
    free_blocks: int  # after scheduling


@dataclass(frozen=True)
class MeasuredRun:
    """A workload served for real."""

    workload: Workload
    decoder: Decoder
    limits: Limits
    num_blocks: int
    result: RunResult  # by the engine's own books, with measured durations
    steps: tuple[MeasuredStep, ...]
    outputs: tuple[I64, ...]  # [n] each request's generated token ids
    token_ns: tuple[I64, ...]  # [n] when each of these was delivered
    failure: str = ""  # what ended the run early; "" if nothing did


def serve_measured(
    workload: Workload,
    decoder: Decoder,
    limits: Limits,
    num_blocks: int,
    *,
    seed: int = 0,
    prompts: Sequence[I64] | None = None,
    clock: Clock | None = None,
) -> MeasuredRun:
    """Serve `workload` in real time with greedy sampling; each request generates as many tokens as the workload says.

    `prompts` gives the token ids ([n], as long as the workload's prompts); default random ones of `seed`, equal where
    the workload names equal content. A step that fails, or a KeyboardInterrupt, ends the run: what was measured up to
    there is returned, with `failure` set. Raises InputError for asynchronous scheduling, which needs two steps in
    flight, and for prompts of wrong lengths.
    """
    if limits.pipeline_depth != 1:
        raise InputError(
            "deployment.engine.async_scheduling=true: the testbed runs one step at a time; set it to false"
        )
    limits = limits._replace(content_span=span_of(workload.prefixes, limits))
    ids = prompt_tokens(workload, decoder.shape.vocab, seed) if prompts is None else list(prompts)
    _check_prompts(workload, ids, decoder.shape.vocab)
    total = workload.prompt_tokens.astype(np.int64) + workload.output_tokens
    rows = np.flatnonzero(total <= limits.max_model_len)
    requests, content_ids = load(workload, rows, limits)
    replica = new_replica(limits, requests, content_ids, records(0, ABORT), num_blocks)
    known = [np.concatenate([ids[row], np.zeros(workload.output_tokens[row], dtype=np.int64)]) for row in rows]
    log = _Log(rows)
    run = _device(decoder, limits, num_blocks)
    failure = ""
    try:
        _warm_up(limits, num_blocks, run)
        _loop(replica, known, run, log, clock or WallClock())
    except KeyboardInterrupt:
        failure = "interrupted"
    except RuntimeError as error:  # what torch raises: out of memory, a device that is gone, a kernel that fails
        failure = f"step {len(log.steps) + 1}: {' '.join(str(error).split())[:300]}"
    result = result_of(replica, workload, rows, not failure)
    outputs, token_ns = log.by_request(workload, known)
    return MeasuredRun(
        workload, decoder, limits, num_blocks, result, tuple(log.steps), outputs, token_ns, failure=failure
    )


def _device(decoder: Decoder, limits: Limits, num_blocks: int) -> Callable[[StepInputs], I64]:
    """The step on the decoder's device, over a KV cache of its own."""
    dtype = str(decoder.embedding.dtype).removeprefix("torch.")
    cache = new_cache(decoder.shape, num_blocks, limits.block_size, dtype, str(decoder.embedding.device))
    return lambda step: run_step(decoder, cache, step)


def _warm_up(limits: Limits, num_blocks: int, run: Callable[[StepInputs], I64]) -> None:
    """Serve one request aside: first calls compile, load and allocate, which is nobody's step time."""
    prompt = max(1, min(limits.max_num_batched_tokens, limits.max_model_len - 2))
    replica = new_replica(limits, records(1, REQUEST), np.zeros(0, dtype=np.int64), records(0, ABORT), num_blocks)
    replica.at[ROWS] = 0
    submit(replica, 0, prompt, 2)
    _loop(replica, [np.zeros(prompt + 2, dtype=np.int64)], run, _Log(np.zeros(1, dtype=np.int64)), WallClock())


def _loop(replica: Replica, known: list[I64], run: Callable[[StepInputs], I64], log: "_Log", clock: Clock) -> None:
    """Serve until nobody is left."""
    at = replica.at
    while True:
        if at[UNFINISHED] == 0:
            if at[NEXT_ARRIVAL] == at[ROWS]:
                return
            clock.sleep_until(int(replica.requests["arrival_ns"][at[NEXT_ARRIVAL]]))
        start = clock.now_ns()
        row = plan(replica, start)
        planned = clock.now_ns()
        if replica.batches["length"][row] == 0:
            complete(replica, row, 0, 0)
            continue
        sampled = run(step_inputs(replica, row, known))
        done = clock.now_ns()
        _deliver(replica, row, known, sampled)
        complete(replica, row, planned - start, done - planned)
        log.add(replica, row, (start, planned, done, clock.now_ns()))


def _deliver(replica: Replica, row: int, known: list[I64], sampled: I64) -> None:
    """Append each sampled token to its request: it stands where the step's last token is followed by nothing known."""
    entries = replica.entries[row, : int(replica.batches["length"][row])].tolist()
    sampling = [(request, before + new) for request, new, before, samples in entries if samples]
    for (request, place), token in zip(sampling, sampled.tolist(), strict=True):
        known[request][place] = token


class _Log:
    """What happened, step by step."""

    def __init__(self, rows: I64) -> None:
        self.steps: list[MeasuredStep] = []
        self._rows = rows  # of the workload, by request
        self._token_ns: list[list[int]] = [[] for _ in rows]

    def add(self, replica: Replica, row: int, times_ns: tuple[int, int, int, int]) -> None:
        """Note the batch in `row`, complete by now."""
        batches = replica.batches
        entries = replica.entries[row, : int(batches["length"][row])].tolist()
        batch = tuple((int(self._rows[request]), new, before) for request, new, before, _ in entries)
        self.steps.append(MeasuredStep(*times_ns, batch, int(batches["waiting"][row]), int(batches["free"][row])))
        for request, _, _, samples in entries:
            if samples:
                self._token_ns[request].append(times_ns[3])

    def by_request(self, workload: Workload, known: list[I64]) -> tuple[tuple[I64, ...], tuple[I64, ...]]:
        """[n] generated ids and [n] their times, in the workload's order; nothing for requests not served."""
        nothing = np.zeros(0, dtype=np.int64)
        outputs, times = [nothing] * len(workload), [nothing] * len(workload)
        for request, row in enumerate(self._rows.tolist()):
            prompt = int(workload.prompt_tokens[row])
            times[row] = np.array(self._token_ns[request], dtype=np.int64)
            outputs[row] = known[request][prompt : prompt + len(times[row])]
        return tuple(outputs), tuple(times)


def _check_prompts(workload: Workload, prompts: Sequence[I64], vocab: int) -> None:
    lengths = [len(prompt) for prompt in prompts]
    if lengths != workload.prompt_tokens.tolist():
        raise InputError(f"prompts: {len(prompts)} given; one a request is wanted, of the lengths of the workload")
    for row, prompt in enumerate(prompts):
        if len(prompt) and not 0 <= prompt.min() <= prompt.max() < vocab:
            raise InputError(f"prompts: request {row} has ids outside 0 to {vocab - 1}")
