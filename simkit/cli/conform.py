"""`simkit conform`: the scheduler against recorded schedules of the real engine."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.cli import options
from simkit.cli.console import emit_json


def conform(
    files: Annotated[list[Path], typer.Argument(help="Recordings, vllm-golden-1, gzip'd JSON lines.")],
    engine: Annotated[str | None, typer.Option(help="Rules of vllm-0.28 and the like; default those recorded.")] = None,
    json: options.Json = False,
) -> None:
    """Replay recorded schedules and compare every field of every step; exit code 1 if any differs."""
    from simkit.engine.dialect import dialect_of
    from simkit.engine.recording import read_recording, replay

    if engine is not None:
        dialect_of(engine)
    recordings = [(path, read_recording(path)) for path in files]
    differences = {str(path): replay(recording, engine) for path, recording in recordings}
    failed = {path: difference for path, difference in differences.items() if difference is not None}
    passed = len(differences) - len(failed)
    if json:
        emit_json({"passed": passed, "failed": len(failed), "differences": failed})
    else:
        for path, difference in failed.items():
            typer.echo(f"{path}: {difference}")
        typer.echo(f"{passed} passed, {len(failed)} failed")
    if failed:
        raise typer.Exit(1)
