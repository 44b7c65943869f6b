"""A short calibration with the bench itself: bursts of requests, whose steps are fitted before the run is predicted.

A burst fills the batch and drains it, so that every batch size occurs, with prompts and answers as long as those of
the workload to come; every other one is small, as most steps of a lightly loaded server are. Its requests are its own:
nothing of what is to be predicted is used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simkit.calibrate.profile import Profile
from simkit.calibrate.step_fit import fit_steps
from simkit.calibrate.step_model import whole_step_tables
from simkit.engine.state import Limits
from simkit.errors import InputError
from simkit.models.steptables import StepTables
from simkit.testbed.bench import Bench
from simkit.testbed.knotted_step import F64, KnottedStep, factors_of, fit_knotted, knotted_tables
from simkit.testbed.measured_run import write_measured_run
from simkit.workloads.workload import Workload

BURSTS = 4
LARGEST_BURST = 48  # requests: more only repeats what full batches take
LONGEST_ANSWER_TOKENS = 64
ARRIVALS_S = 1.0  # over which a burst arrives, so that prompts meet decodes


def burst(workload: Workload, limits: Limits, seed: int, requests: int | None = None) -> Workload:
    """Requests of the workload's range of lengths, log-uniform: enough for a full batch, or by an odd seed a few.

    `requests` says how many instead.
    """
    rng = np.random.default_rng((seed, 0xB0257))
    full = min(limits.max_running * 3 // 2 + 1, LARGEST_BURST)
    n = requests or (full if seed % 2 == 0 else max(2, full // 6))
    answer = int(min(workload.output_tokens.max(), LONGEST_ANSWER_TOKENS, limits.max_model_len - 1))
    longest = int(min(workload.prompt_tokens.max(), limits.max_model_len - answer))
    shortest = int(min(workload.prompt_tokens.min(), longest))
    return Workload(
        name=f"calibration burst {seed}",
        arrival_us=np.sort(rng.integers(0, int(ARRIVALS_S * 1e6), n)),
        prompt_tokens=_log_uniform(rng, shortest, longest, n),
        output_tokens=_log_uniform(rng, min(4, answer), answer, n),
    )


def calibrate(
    bench: Bench,
    workload: Workload,
    folder: Path,
    bursts: int = BURSTS,
    seed: int = 0,
    requests: Sequence[int] = (),
) -> list[Path]:
    """Serve so many bursts, each logged to a file of `folder`, whose paths are returned.

    `requests` gives the sizes of the bursts in turn; default as `burst` chooses them.

    Raises InputError where a burst fails, with what was the matter; KeyboardInterrupt is passed on.
    """
    paths = []
    for number in range(bursts):
        size = requests[number % len(requests)] if requests else None
        run = bench.serve(burst(workload, bench.limits, seed + number, size), seed=seed + number)
        path = folder / f"calibration-{seed + number}.jsonl.gz"
        write_measured_run(run, path)
        if run.failure.startswith("interrupted"):
            raise KeyboardInterrupt
        if run.failure:
            raise InputError(f"testbed: calibration failed: {run.failure}; its log up to there is {path}")
        paths.append(path)
    return paths


class Fitted(NamedTuple):
    """What logs of a bench give."""

    profile: Profile  # the whole-step model, for other verbs
    model: KnottedStep  # the testbed's own
    tables: StepTables  # of the latter
    factors: tuple[F64, ...]  # of each log, how many times as long as it says steps took: for `predicted_with_spread`


def fitted(paths: Sequence[Path], bench: Bench) -> Fitted:
    """Both models fitted to the same logs; InputError for bad logs, or too few steps."""
    limits, model = bench.limits, fit_knotted(paths)
    sizes = (limits.max_num_batched_tokens, limits.max_running, limits.max_model_len)
    tables = knotted_tables(model, *sizes, bench.executor.num_blocks * limits.block_size)
    return Fitted(fit_steps(paths), model, tables, factors_of(model, paths))


def profile_tables(profile: Profile, bench: Bench) -> StepTables:
    """A whole-step profile's tables for this bench."""
    limits = bench.limits
    sizes = (limits.max_num_batched_tokens, limits.max_running, limits.max_model_len)
    return whole_step_tables(profile.step, *sizes, bench.executor.num_blocks * limits.block_size)


def _log_uniform(rng: np.random.Generator, low: int, high: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.exp(rng.uniform(np.log(low), np.log(high + 1), n)).astype(np.int32).clip(low, high)
