"""From step logs to a profile: fit the whole-step model, and measure it on steps that it has not seen."""

import hashlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simkit import __version__
from simkit.calibrate.front_end import front_end
from simkit.calibrate.held_out import HeldOutError, folds_of, held_out_error
from simkit.calibrate.nonnegative import nonnegative_least_squares
from simkit.calibrate.profile import EngineSizes, Profile, Seen, Source
from simkit.calibrate.step_features import StepFeatures, joined, step_features
from simkit.calibrate.step_log import StepLog, read_step_log
from simkit.calibrate.step_model import HostTime, WholeStep
from simkit.errors import InputError

F64 = NDArray[np.float64]

FEWEST_STEPS = 50  # ten a fold: fewer say nothing about an error's 90th percentile
REWEIGHTINGS = 50
SETTLED = 1e-9
MEDIAN_REWEIGHTINGS = 300
MEDIAN_SETTLED = 1e-6
SMALLEST = 1e-4  # of the prediction: a residual below it counts as none


def fit_steps(paths: Sequence[Path], created: str | None = None) -> Profile:
    """The profile of the engine that wrote these step logs.

    Args:
        paths: one or more runs of the same engine, model and device.
        created: the date to write, YYYY-MM-DD; today if None.

    Raises:
        InputError: a log is bad, two logs are of different deployments, or they hold too few steps.
    """
    if not paths:
        raise InputError("calibrate fit: no step log is named; give one with --steps FILE")
    logs = [read_step_log(path) for path in paths]
    _check_alike(logs)
    parts = [step_features(log) for log in logs]
    steps = joined(parts)
    if len(steps) < FEWEST_STEPS:
        names = ", ".join(str(path) for path in paths)
        raise InputError(f"{names}: {len(steps)} steps computed something; record at least {FEWEST_STEPS}")
    header = logs[0].header
    return Profile(
        created=created or date.today().isoformat(),
        simkit_version=__version__,
        device=header.device,
        engine=header.engine,
        versions=header.versions,
        model=header.model,
        engine_sizes=EngineSizes(**{name: getattr(header, name) for name in EngineSizes.model_fields}),
        sources=tuple(_source(log) for log in logs),
        seen=Seen(
            tokens=int(steps.tokens.max()),
            requests=int(steps.requests.max()),
            context_tokens=int(steps.longest.max()),
            pairs=float(steps.pairs.max()),
        ),
        step=fit_whole_step(steps),
        typical_step=fit_typical_step(steps),
        front_end=front_end(logs),
        held_out=held_out_errors(steps, [len(part) for part in parts]),
    )


def fit_whole_step(steps: StepFeatures) -> WholeStep:
    """The coefficients with the least squared relative error, none of them negative."""
    device = relative_fit(steps.columns(), steps.device_s)
    timed = ~np.isnan(steps.host_s)
    host_columns = np.column_stack([np.ones(int(timed.sum())), steps.requests[timed]])
    # plain, not relative: gaps of 0.1 ms among some of 2 ms, of which the mean is what a run adds up
    host = nonnegative_least_squares(host_columns, steps.host_s[timed]) if timed.any() else np.zeros(2)
    return whole_step_of(device, host)


def fit_typical_step(steps: StepFeatures) -> WholeStep:
    """The coefficients of the median step: half of the steps took longer than they say, by `median_fit`.

    Its total time is below what was spent wherever a busy machine stretched some steps; `fit_whole_step` is the one
    that adds up. Medians over requests are predicted with this one.
    """
    device = median_fit(steps.columns(), steps.device_s)
    timed = ~np.isnan(steps.host_s)
    host_columns = np.column_stack([np.ones(int(timed.sum())), steps.requests[timed]])
    host = median_fit(host_columns, steps.host_s[timed]) if timed.any() else np.zeros(2)
    return whole_step_of(device, host)


def whole_step_of(device: F64, host: F64) -> WholeStep:
    """Fitted coefficients, f64[4] and f64[2], by name."""
    return WholeStep(
        step_s=float(device[0]),
        token_s=float(device[1]),
        request_s=float(device[2]),
        pair_s=float(device[3]),
        host=HostTime(step_s=float(host[0]), request_s=float(host[1])),
    )


def median_fit(columns: F64, seconds: F64) -> F64:
    """Coefficients c >= 0, f64[k], with the least sum of |ln(predicted / measured)|: a median regression.

    A step that something else on the machine stretched to twice its time counts as any other that is above the
    prediction. Solved by reweighted least squares (Schlossmacher, JASA 68, 1973): the gradient, sign(measured -
    predicted) / predicted for each row, is that of squares weighted by 1 / (predicted |measured - predicted|).
    """
    mean = float(np.mean(seconds))
    coefficients = nonnegative_least_squares(columns, seconds)
    if mean <= 0.0:
        return coefficients
    for _ in range(MEDIAN_REWEIGHTINGS):
        predicted = np.maximum(columns @ coefficients, SMALLEST * mean)
        weight = 1.0 / np.sqrt(predicted * np.maximum(np.abs(seconds - predicted), SMALLEST * predicted))
        better = nonnegative_least_squares(columns * weight[:, None], seconds * weight)
        moved = np.max(np.abs(columns @ better - predicted) / predicted)
        coefficients = better
        if moved < MEDIAN_SETTLED:
            break
    return coefficients


def relative_fit(columns: F64, seconds: F64) -> F64:
    """Coefficients c >= 0, f64[k], of columns f64[n, k] for times f64[n] > 0, by error relative to the prediction.

    Dividing by the measured time would take steps that a busy machine stretched too lightly, and predict less time
    than was spent (4 % less in total on the shared CPU runs). Dividing by the predicted time makes predicted and
    measured totals agree; it is the score equation of a gamma model with identity link (McCullagh and Nelder,
    Generalized Linear Models, 1989, chapter 8), solved by reweighting.
    """
    coefficients = nonnegative_least_squares(columns / seconds[:, None], np.ones(len(seconds)))
    for _ in range(REWEIGHTINGS):
        predicted = columns @ coefficients
        better = nonnegative_least_squares(columns / predicted[:, None], seconds / predicted)
        moved = np.max(np.abs(columns @ better - predicted) / predicted)
        coefficients = better
        if moved < SETTLED:
            break
    return coefficients


def held_out_errors(steps: StepFeatures, lengths: list[int]) -> tuple[HeldOutError, ...]:
    """Errors of each step's device time by the fit that has not seen it: all, and by what the step computed.

    `lengths` are the steps of each run; see `folds_of`.
    """
    fold = folds_of(lengths)
    predicted = np.zeros(len(steps))
    for held in range(int(fold.max()) + 1):
        out = fold == held
        if out.any():
            predicted[out] = fit_whole_step(steps.take(~out)).device_s(steps.columns()[out])
    parts = (
        ("all steps", np.ones(len(steps), dtype=np.bool_)),
        ("decodes only", steps.decodes_only),
        ("with prefill", ~steps.decodes_only),
    )
    return tuple(
        held_out_error(name, predicted[part], steps.device_s[part], fold[part]) for name, part in parts if np.any(part)
    )


def profile_rows(profile: Profile) -> list[tuple[str, str]]:
    """What to print of a profile: names and values, in order."""
    step = profile.step
    rows = [
        ("device", profile.device),
        ("engine", profile.engine),
        ("fitted on", f"{sum(s.steps for s in profile.sources):,} steps of {len(profile.sources)} run(s)"),
        ("a step", f"{1e3 * step.step_s:.3f} ms"),
        ("a token", f"{1e3 * step.token_s:.4f} ms"),
        ("a request", f"{1e3 * step.request_s:.4f} ms"),
        ("1,000 tokens of context read by a token", f"{1e6 * step.pair_s:.4f} ms"),
        ("host, a step", f"{1e3 * step.host.step_s:.3f} ms + {1e3 * step.host.request_s:.3f} ms a request"),
    ]
    if profile.front_end is not None:
        front = profile.front_end
        rows.append(
            ("front end", f"{1e3 * front.arrival_s:.2f} ms to the scheduler, {1e3 * front.delivery_s:.2f} ms back")
        )
    seen = profile.seen
    rows.append(
        ("seen up to", f"{seen.tokens:,} tokens, {seen.requests:,} requests, {seen.context_tokens:,} tokens of context")
    )
    for error in profile.held_out:
        errors = f"median {error.median_abs:.1%}, p90 {error.p90_abs:.1%}, worst {error.max_abs:.0%}"
        rows.append(
            (
                f"held-out error, {error.part} ({error.steps:,})",
                f"{errors}, bias {error.bias:+.1%} (worst fold {error.drift:+.1%})",
            )
        )
    return rows


def _source(log: StepLog) -> Source:
    with log.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Source(file=log.path.name, sha256=digest, steps=log.steps, requests=len(log.requests))


def _check_alike(logs: list[StepLog]) -> None:
    """Runs fitted together must be of one deployment; what a header leaves out is taken to be alike."""
    first = logs[0]
    for log in logs[1:]:
        for name in ("engine", "device", "model", "block_size", "max_num_batched_tokens", "max_num_seqs",
                     "async_scheduling"):  # fmt: skip
            ours, theirs = getattr(first.header, name), getattr(log.header, name)
            if ours != theirs:
                raise InputError(
                    f"{log.path}:1: {name}={theirs!r}: differs from {ours!r} in {first.path}; fit them one by one"
                )
