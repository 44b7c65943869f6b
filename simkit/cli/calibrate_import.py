"""`simkit calibrate import`: others' measurements as operator profiles."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simkit.cli import options
from simkit.cli.console import answers, emit_json, people, waiting_for

if TYPE_CHECKING:
    from simkit.calibrate.operator_profile import OperatorProfile

app = typer.Typer(help="Others' measurements as operator profiles.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="The profile's directory.")]
Compress = Annotated[bool, typer.Option("--gzip", help="Write the tables as .csv.gz.")]


@app.command()
def aic(
    system: Annotated[str, typer.Option(help="AIConfigurator's name of the GPU: h200_sxm, h100_sxm, a100_sxm ..")],
    out: Out,
    backend: Annotated[str, typer.Option(help="vllm, sglang or trtllm.")] = "vllm",
    version: Annotated[str | None, typer.Option(help="Of the engine; default the newest of each table.")] = None,
    compress: Compress = False,
    json: options.Json = False,
) -> None:
    """The tables that the distribution aiconfigurator-core installs (Apache-2.0): ten GPUs, three engines."""
    from simkit.calibrate.aic_import import import_aic

    with waiting_for("reading the tables"):
        profile = import_aic(system, backend, version)
    _write(profile, out, compress, json)


@app.command()
def vidur(
    folder: Annotated[Path, typer.Argument(help="A directory with Vidur's profiling CSVs of one device.")],
    device: Annotated[str, typer.Option(help="Whose they are: a name from `simkit devices`.")],
    out: Out,
    compress: Compress = False,
    json: options.Json = False,
) -> None:
    """Vidur's mlp, attention and collective tables (MIT)."""
    from simkit.calibrate.vidur_import import import_vidur

    with waiting_for("reading the tables"):
        profile = import_vidur(folder, device)
    _write(profile, out, compress, json)


def _write(profile: "OperatorProfile", out: Path, compress: bool, json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from simkit.calibrate.operator_profile import write_operator_profile

    with waiting_for("writing the profile"):
        header = write_operator_profile(profile, out, compress)
    if json:
        emit_json(header.model_dump(mode="json"))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("table")
    table.add_column("rows", justify="right")
    for name, entry in header.tables.items():
        table.add_row(Text(name), f"{entry.rows:,}")
    people.print(f"{header.name}: {header.origin.name} {header.origin.version}, {header.origin.licence}", markup=False)
    answers.print(table)
    for note in header.notes:
        people.print(f"note: {note}", markup=False)
    people.print(f"profile: {out}", markup=False)
