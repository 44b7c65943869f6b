"""`simkit conform`: the scheduler against recorded schedules of the real engine."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.cli import options
from simkit.cli.console import emit_json
from simkit.errors import InputError


def conform(
    files: Annotated[
        list[Path], typer.Argument(help="Recordings, vllm-golden-1, gzip'd JSON lines; or folders of them.")
    ],
    engine: Annotated[str | None, typer.Option(help="Rules of vllm-0.28 and the like; default those recorded.")] = None,
    json: options.Json = False,
) -> None:
    """Replay recorded schedules and compare every field of every step; exit code 1 if any differs."""
    from simkit.engine.dialect import dialect_of
    from simkit.engine.recording import read_recording, replay

    if engine is not None:
        dialect_of(engine)
    recordings = [(path, read_recording(path)) for place in files for path in _recordings(place)]
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


def _recordings(place: Path) -> list[Path]:
    """A file itself; of a folder the recordings in it, by name. InputError if it has none."""
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.iterdir() if path.name.endswith((".jsonl", ".jsonl.gz")))
    if not found:
        raise InputError(f"{place}: no recordings, *.jsonl or *.jsonl.gz, are in this folder; give one that has some")
    return found
