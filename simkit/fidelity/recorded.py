"""A run recorded step by step (`simkit-measured-run-1`) beside its replay."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.front_end import front_end_law
from simkit.calibrate.profile import Profile
from simkit.calibrate.recorded_workload import recorded_workload
from simkit.calibrate.step_log import StepLog
from simkit.calibrate.step_model import whole_step_tables
from simkit.engine.settings import EngineSettings
from simkit.engine.simulate import simulate
from simkit.errors import InputError
from simkit.fidelity.comparison import WHOLE, Compared, ComparedRun
from simkit.fidelity.figures import MEDIANS, ClientLatencies, client_latencies, figures
from simkit.fidelity.predict import Timing
from simkit.metrics.front_end import with_front_end
from simkit.metrics.latency import finished_latencies
from simkit.models.steptables import StepTables, scaled

I64 = NDArray[np.int64]

BLOCK_TOKENS = 16  # vLLM's default, where a header does not say

WholeStepTables = Callable[[int, int, int, int], StepTables]


def profile_timing(profile: Profile, factor: float = 1.0) -> Timing:
    """The timing of step logs by a whole-step profile: its mean step, its median step, and its front end."""
    typical = profile.typical_step
    return Timing(
        whole_step=partial(whole_step_tables, profile.step),
        typical_step=None if typical is None else partial(whole_step_tables, typical),
        front_end=front_end_law(profile.front_end),
        factor=factor,
    )


def compare_recorded(log: StepLog, timing: Timing) -> ComparedRun:
    """The recorded requests on the recorded engine's sizes, timed by a profile.

    Raises:
        InputError: there is no profile (a log names no device of the catalogue), the header lacks a size, or no
            request line carries the times of all its tokens.
    """
    if timing.whole_step is None:
        raise InputError(
            f"{log.path.name}: a step log is of an engine and a device of its own; fit a profile on another run "
            "(simkit calibrate fit --steps) and give it with --profile"
        )
    header = log.header
    sizes = (header.max_num_batched_tokens, header.max_num_seqs, header.num_gpu_blocks)
    if None in sizes:
        raise InputError(
            f"{log.path.name}: the header lacks max_num_batched_tokens, max_num_seqs or num_gpu_blocks; add them"
        )
    batched, seqs, blocks = (int(size or 0) for size in sizes)
    workload = recorded_workload(log)
    longest = int((workload.prompt_tokens.astype(np.int64) + workload.output_tokens).max())
    settings = EngineSettings(async_scheduling=header.async_scheduling, block_size=header.block_size or BLOCK_TOKENS)
    limits = settings.limits(blocks, longest, batched, seqs)

    def replayed(step: WholeStepTables) -> ClientLatencies:
        tables = step(batched, seqs, longest, blocks * limits.block_size)
        result = simulate(workload, limits, _by(tables, timing.factor), blocks)
        if not result.complete:
            raise KeyboardInterrupt
        seen = with_front_end(result.requests, timing.front_end.ns(workload.prompt_tokens))
        return client_latencies(finished_latencies(seen))

    # a mean over requests follows the mean step, stretched ones included; a median follows the median step
    predicted = replayed(timing.whole_step)
    typical = predicted if timing.typical_step is None else replayed(timing.typical_step)
    measured = measured_latencies(log)
    # of the same requests on both sides: those that were cut short load the engine, and have no latency to compare
    same = np.isin(np.arange(len(workload)), measured.row)
    medians = {metric: value for metric, value in figures(typical, same).items() if metric in MEDIANS}
    whole = Compared(WHOLE, figures(predicted, same) | medians, figures(measured.seen), {}, None, None)
    left_out = len(workload) - len(measured.row)
    cut = (f"{left_out} requests without the times of all their tokens are replayed, and not compared",)
    return ComparedRun(
        id=log.path.name,
        model=str(header.model.get("name", "recorded")),
        hardware=header.device,
        tensor=1,
        step_time="profile",
        note=f"{len(workload)} recorded requests, {log.steps} recorded steps",
        stages=(whole,),
        notes=(_paired(typical, measured), *(cut if left_out else ())),
    )


def _by(tables: StepTables, factor: float) -> StepTables:
    return tables if factor == 1.0 else scaled(tables, factor)


class Recorded(NamedTuple):
    """What the clients of a log saw."""

    row: I64  # of the log's requests, those that have the times of all their tokens
    seen: ClientLatencies


def measured_latencies(log: StepLog) -> Recorded:
    """What the clients recorded of requests that got their whole answer; InputError if there is none."""
    whole = [row for row, line in enumerate(log.requests) if 0 < line.output_tokens <= len(line.token_times)]
    row = np.array(whole, dtype=np.int64)
    if len(row) == 0:
        raise InputError(
            f"{log.path.name}: no request line has token_times of all its tokens, so there is nothing to compare with"
        )
    timed = [log.requests[i] for i in row.tolist()]
    arrival = np.array([line.arrival for line in timed])
    first = np.array([line.token_times[0] for line in timed])
    last = np.array([line.token_times[-1] for line in timed])
    tokens = np.array([len(line.token_times) for line in timed], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        itl = np.where(tokens > 1, (last - first) / (tokens - 1.0), np.nan)
    return Recorded(row, ClientLatencies(first - arrival, itl, last - arrival))


def _paired(predicted: ClientLatencies, measured: Recorded) -> str:
    """How wrong the median request is: requests are the same ones, so each has its own ratio."""
    parts = []
    for name, ours, theirs in (
        ("E2E", predicted.e2e_s, measured.seen.e2e_s),
        ("ITL", predicted.itl_s, measured.seen.itl_s),
        ("TTFT", predicted.ttft_s, measured.seen.ttft_s),
    ):
        ratio = ours[measured.row] / theirs
        parts.append(f"{name} {np.nanmedian(ratio) - 1:+.1%}")
    return f"the median request, each against itself: {', '.join(parts)}"
