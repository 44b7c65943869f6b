"""`simkit validate`: predictions beside what real servers measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simkit.cli import options
from simkit.cli.console import answers, emit_json, nothing_yet, people, progress, waiting_for, whole_or_nothing
from simkit.errors import InputError

if TYPE_CHECKING:
    from simkit.engine.deployment import ReplicaSpec
    from simkit.fidelity.comparison import Validation
    from simkit.fidelity.predict import Timing


def validate(
    files: Annotated[list[Path], typer.Argument(help="Lists of measured runs (JSON), or step logs.")],
    profile: options.Profile = None,
    uncalibrated: options.Uncalibrated = False,
    step_time_factor: Annotated[float, typer.Option(help="Multiply every step time: what if it were wrong.")] = 1.0,
    stages: Annotated[bool, typer.Option("--stages", help="Print each stage, not only whole runs.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write scatter plots and error tables to this file.")] = None,
    json: options.Json = False,
) -> None:
    """Rebuild measured runs, replay them, and print predicted, measured and error of every latency.

    Runs that cannot be replayed are named with the reason; exit code 2 if that is all of them.
    """
    with nothing_yet():
        from simkit.engine.warm_up import warm_up
        from simkit.fidelity.validate import read_sources
        from simkit.fidelity.validate import validate as compare

        if not 0.01 <= step_time_factor <= 100.0:
            raise InputError(f"--step-time-factor {step_time_factor:g}: a factor from 0.01 to 100 is wanted")
        if profile is not None and uncalibrated:
            raise InputError("--profile and --uncalibrated: give one of them")
        sources = read_sources(files)
        timing = _timing(profile, uncalibrated, step_time_factor)
        with waiting_for("compiling the engine, which is kept for later runs"):
            warm_up("vllm-v1")
    with whole_or_nothing(), progress("runs", len(sources)) as on_progress:
        validation = compare(sources, timing, on_progress=on_progress)
    if html is not None:
        _write(validation, html)
    if json:
        from simkit.fidelity.comparison import as_json

        emit_json(as_json(validation))
    else:
        _show(validation, stages)
    if html is not None:
        people.print(f"page: {html}", markup=False)
    if not validation.runs:
        first, *others = validation.not_run
        more = f" (and {len(others)} more)" if others else ""
        raise InputError(f"nothing to compare, as no run could be replayed: {first.id}: {first.reason}{more}")


def _timing(profile: Path | None, uncalibrated: bool, factor: float) -> "Timing":
    from simkit.fidelity.predict import Timing

    if profile is None:
        return Timing(step_time="uncalibrated" if uncalibrated else "calibrated", factor=factor)
    if profile.is_dir():  # of operators: it times a deployment, and no step log
        return Timing(profile=_profile(profile), factor=factor)
    from simkit.calibrate.profile import read_profile
    from simkit.fidelity.recorded import profile_timing

    return replace(profile_timing(read_profile(profile), factor), profile=_profile(profile))


def _profile(path: Path) -> "Callable[[ReplicaSpec], ReplicaSpec]":
    from simkit.cli.profile import with_profile

    return lambda spec: with_profile(spec, path, any_device=True)


def _write(validation: "Validation", path: Path) -> None:
    from simkit.fidelity.page import render

    try:
        path.write_text(render(validation), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}; name another file") from None


def _show(validation: "Validation", stages: bool) -> None:
    from simkit.fidelity.comparison import by_stage, overall
    from simkit.fidelity.table import runs_table, summary_table

    if validation.runs:
        answers.print(runs_table(validation.runs, stages))
        answers.print()
        answers.print(summary_table(f"whole runs ({len(validation.runs)})", overall(validation.runs)))
        answers.print()
        answers.print(summary_table("single stages", by_stage(validation.runs)))
        sources = dict.fromkeys(f"{run.step_time}: {run.note}" for run in validation.runs)
        for source in sources:
            answers.print(f"step times {source}", markup=False)
    for run in validation.runs:
        for note in (
            *run.notes,
            *(stage.excluded for stage in run.stages if stage.excluded and stage.stage != "whole"),
        ):
            answers.print(f"{run.id}: {note}", markup=False, style="dim")
    for other in validation.not_run:
        answers.print(f"not run: {other.id}: {other.reason}", markup=False, style="yellow")
