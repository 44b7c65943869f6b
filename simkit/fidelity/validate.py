"""Files of measured runs in, predictions beside measurements out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from simkit.calibrate.step_log import StepLog, read_step_log
from simkit.errors import InputError
from simkit.fidelity.comparison import WHOLE, Compared, ComparedRun, NotRun, Validation
from simkit.fidelity.deployments import MAX_NUM_SEQS, known_model, precision_note
from simkit.fidelity.figures import COMPARED, Figures
from simkit.fidelity.intervals import Interval, intervals, shipped_residuals, step_factors
from simkit.fidelity.measured_runs import MeasuredLatency, MeasuredRun, UnreadRun, runs_of
from simkit.fidelity.predict import Prediction, Timing, predict_run
from simkit.fidelity.recorded import compare_recorded
from simkit.models.calibrated import PROVENANCE as CALIBRATED
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.kernel_laws import laws_of
from simkit.workloads.source import line_chunks

SEEDS = 3  # replays of a run: the first is the prediction, the others say how much arrivals spread it

Source = MeasuredRun | UnreadRun | StepLog


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """The measured runs of files: lists of runs under inference-perf, or step logs.

    Raises:
        InputError: a file is neither, or holds nothing that can be read; or two runs have one id.
    """
    found: list[Source] = []
    for path in paths:
        if _begins(path) == "[":
            found += runs_of(path)
        else:
            found.append(read_step_log(path))
    return found


def _begins(path: Path) -> str:
    """The first character of a file, plain or compressed, that is no space."""
    for chunk in line_chunks(path):
        text = chunk.text.lstrip()
        if text:
            return text[0]
    raise InputError(f"{path}: is empty; name a list of measured runs, or a step log")


def validate(
    sources: Sequence[Source],
    timing: Timing | None = None,
    seeds: int = SEEDS,
    on_progress: Callable[[int], None] | None = None,
) -> Validation:
    """Replay every run that can be rebuilt; `on_progress` is told how many are done."""
    timing = timing or Timing()
    runs: list[ComparedRun] = []
    not_run: list[NotRun] = []
    for number, source in enumerate(sources, start=1):
        try:
            if isinstance(source, UnreadRun):
                not_run.append(NotRun(source.id, source.reason))
            elif isinstance(source, MeasuredRun):
                runs.append(compare_run(source, timing, seeds))
            else:
                runs.append(compare_recorded(source, timing))
        except InputError as error:
            name = source.path.name if isinstance(source, StepLog) else source.id
            not_run.append(NotRun(name, str(error)))
        if on_progress is not None:
            on_progress(number)
    return Validation(tuple(runs), tuple(not_run))


def compare_run(run: MeasuredRun, timing: Timing, seeds: int = SEEDS) -> ComparedRun:
    """One run, replayed; InputError says why it cannot be."""
    first = predict_run(run, timing)
    # around calibrated predictions only: of others nobody measured the error
    around = _around(run, timing, first, seeds) if first.provenance == CALIBRATED else None
    precision = precision_note(run)
    notes = [] if precision is None else [precision]
    if run.cpu_offload:
        notes.append("KV offload to the host was on; it is not modelled")
    if run.unused:
        notes.append(f"not known here, not used: {', '.join(run.unused)[:300]}")
    if first.rejected:
        notes.append(f"{first.rejected} requests are longer than max_model_len and were turned away")
    excluded = {name: reason for name in run.measured if (reason := excluded_for(run, name)) is not None}
    if excluded:
        excluded[WHOLE] = next(iter(excluded.values()))
    return ComparedRun(
        id=run.id,
        model=run.model,
        hardware=run.hardware,
        tensor=run.tensor_parallel,
        step_time=first.provenance,
        note=first.note,
        stages=tuple(
            Compared(
                stage=name,
                predicted=figures,
                measured=measured_figures(run.measured.get(name)),
                intervals={} if around is None else _intervals(run, name, around),
                in_flight=measured_in_flight(run, name),
                excluded=excluded.get(name),
            )
            for name, figures in first.stages.items()
        ),
        notes=tuple(notes),
    )


def measured_figures(latency: MeasuredLatency | None) -> Figures:
    """What was measured, ms; empty for a stage that was not."""
    if latency is None:
        return {}
    values = {metric: getattr(latency, f"{metric}_ms") for metric in COMPARED}
    return {metric: value for metric, value in values.items() if value is not None}


def measured_in_flight(run: MeasuredRun, stage: str) -> float | None:
    """Mean requests in the server in a stage: offered rate x measured mean E2E (Little, 1961)."""
    if stage == WHOLE:
        return None
    latency = run.measured.get(stage)
    if latency is None or latency.e2e_mean_ms is None:
        return None
    rate, _ = run.workload_spec.stages[int(stage.removeprefix("stage"))]
    return rate * latency.e2e_mean_ms / 1e3


def excluded_for(run: MeasuredRun, stage: str) -> str | None:
    """Why a stage cannot be held to its offered rate, or None if it can.

    If requests came at the offered rate, so many were in the server on average. More than `max_num_seqs` cannot be in
    service: then either the queue grew for as long as the stage lasted, or the client held requests back (its workers
    bound their concurrency) and the real rate was lower than the one recorded. Neither is a steady state to predict.
    """
    load = measured_in_flight(run, stage)
    most = run.max_num_seqs or MAX_NUM_SEQS
    if load is None or load <= most:
        return None
    return (
        f"{stage}: the offered rate and the measured E2E would keep {load:.0f} requests in the server, and "
        f"max_num_seqs is {most}: more was offered than it takes, and the client held requests back or the queue grew"
    )


class _Around(NamedTuple):
    """Replays of one run that say how far its figures may move."""

    seeds: list[Prediction]  # the prediction first, then other arrivals
    faster: Prediction
    slower: Prediction


def _around(run: MeasuredRun, timing: Timing, first: Prediction, seeds: int) -> _Around:
    factors = step_factors(shipped_residuals(), _model(run))
    return _Around(
        [first, *(predict_run(run, timing, seed) for seed in range(1, seeds))],
        *(predict_run(run, replace(timing, factor=timing.factor * factor)) for factor in factors),
    )


def _intervals(run: MeasuredRun, stage: str, around: _Around) -> dict[str, Interval]:
    device = load_device(run.hardware)
    laws = laws_of(device)
    return intervals(
        around.seeds[0].stages[stage],
        shipped_residuals(),
        [other.stages[stage] for other in around.seeds],
        (around.faster.stages[stage], around.slower.stages[stage]),
        _model(run),
        stand_in=laws is None or laws[1] != device.name,
    )


def _model(run: MeasuredRun) -> str:
    return load_model(known_model(run.model)).name
