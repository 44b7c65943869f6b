"""Predicted beside measured: errors of a run, and what they come to over runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from simkit.fidelity.figures import METRICS, Figures
from simkit.fidelity.intervals import Interval

WHOLE = "whole"


@dataclass(frozen=True)
class Compared:
    """A stage of a run, or all of it."""

    stage: str  # whole, stage0, stage1, ..
    predicted: Figures
    measured: Figures
    intervals: dict[str, Interval]  # of the predicted figures that have one
    in_flight: float | None  # mean requests in the server as measured, by Little's law
    excluded: str | None  # why it says nothing about the predictor; None if it counts

    def error_pct(self, metric: str) -> float | None:
        """(predicted / measured - 1) x 100, or None where one of them is not known."""
        predicted, measured = self.predicted.get(metric), self.measured.get(metric)
        return None if predicted is None or not measured else (predicted / measured - 1.0) * 100.0

    def inside(self, metric: str) -> bool | None:
        """Whether the measured figure lies in the predicted interval; None where one of them is not known."""
        bounds, measured = self.intervals.get(metric), self.measured.get(metric)
        return None if bounds is None or measured is None else bounds.low <= measured <= bounds.high


@dataclass(frozen=True)
class ComparedRun:
    """A run that was replayed."""

    id: str
    model: str
    hardware: str
    tensor: int
    step_time: str  # provenance
    note: str
    stages: tuple[Compared, ...]
    notes: tuple[str, ...] = ()  # what a reader should know about how it was rebuilt

    @property
    def whole(self) -> Compared:
        """All stages together."""
        return next(stage for stage in self.stages if stage.stage == WHOLE)


@dataclass(frozen=True)
class NotRun:
    """A run that could not be replayed, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Validation:
    """What `simkit validate` found."""

    runs: tuple[ComparedRun, ...]
    not_run: tuple[NotRun, ...]


@dataclass(frozen=True)
class ErrorSummary:
    """Errors of one metric over runs, %."""

    median_abs_pct: float
    mape_pct: float
    median_signed_pct: float
    worst_pct: float  # of largest size, with its sign
    n: int
    inside_interval: float | None  # share of the measured figures that lie in their intervals


def summarized(parts: Sequence[Compared]) -> dict[str, ErrorSummary]:
    """Errors by metric over the parts that count; a metric that no part has is left out."""
    counting = [part for part in parts if part.excluded is None]
    found = {}
    for metric in METRICS:
        errors = [error for part in counting if (error := part.error_pct(metric)) is not None]
        if not errors:
            continue
        inside = [held for part in counting if (held := part.inside(metric)) is not None]
        size = np.abs(errors)
        found[metric] = ErrorSummary(
            median_abs_pct=float(np.median(size)),
            mape_pct=float(np.mean(size)),
            median_signed_pct=float(np.median(errors)),
            worst_pct=float(errors[int(np.argmax(size))]),
            n=len(errors),
            inside_interval=float(np.mean(inside)) if inside else None,
        )
    return found


def overall(runs: Iterable[ComparedRun]) -> dict[str, ErrorSummary]:
    """Errors over whole runs."""
    return summarized([run.whole for run in runs])


def by_stage(runs: Iterable[ComparedRun]) -> dict[str, ErrorSummary]:
    """Errors over single stages; a run of one stage is that stage."""
    parts = []
    for run in runs:
        own = [stage for stage in run.stages if stage.stage != WHOLE and stage.measured]
        parts += own or [run.whole]
    return summarized(parts)


def as_json(validation: Validation) -> dict[str, object]:
    """`overall` by metric, `runs` with each stage's figures in ms and errors in %, and `not_run` with reasons."""
    return {
        "overall": {metric: vars(summary) for metric, summary in overall(validation.runs).items()},
        "runs": [_run_json(run) for run in validation.runs],
        "not_run": [{"id": run.id, "reason": run.reason} for run in validation.not_run],
    }


def _run_json(run: ComparedRun) -> dict[str, object]:
    return {
        "id": run.id,
        "model": run.model,
        "hardware": run.hardware,
        "tensor_parallel": run.tensor,
        "step_time": {"provenance": run.step_time, "note": run.note},
        "stages": {stage.stage: _stage_json(stage) for stage in run.stages},
        "notes": list(run.notes),
    }


def _stage_json(stage: Compared) -> dict[str, object]:
    return {
        "predicted_ms": dict(stage.predicted),
        "measured_ms": dict(stage.measured),
        "error_pct": {metric: error for metric in METRICS if (error := stage.error_pct(metric)) is not None},
        "interval_ms": {metric: [bounds.low, bounds.high] for metric, bounds in stage.intervals.items()},
        "in_flight": stage.in_flight,
        "excluded": stage.excluded,
    }
