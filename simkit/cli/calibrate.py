"""`simkit calibrate`: step times from measurements."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.cli import calibrate_import, calibrate_measure, calibrate_report, options
from simkit.cli.console import answers, emit_json, people

app = typer.Typer(help="Step times from measurements: profiles.", no_args_is_help=True)
app.command()(calibrate_measure.measure)
app.command()(calibrate_measure.check)
app.command()(calibrate_report.report)
app.add_typer(calibrate_import.app, name="import")


@app.command()
def fit(
    steps: Annotated[list[Path], typer.Option("--steps", help="A step log, simkit-measured-run-1; repeat for more.")],
    out: Annotated[Path, typer.Option(help="The profile to write.")],
    json: options.Json = False,
) -> None:
    """Fit a whole-step model to an engine's own step logs and say how wrong it is on steps it was not fitted on."""
    from simkit.calibrate.profile import write_profile
    from simkit.calibrate.step_fit import fit_steps, profile_rows

    profile = fit_steps(steps)
    write_profile(profile, out)
    if json:
        emit_json(profile.model_dump(mode="json"))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in profile_rows(profile):
        table.add_row(Text(name), Text(value))
    answers.print(table)
    people.print(f"profile: {out}", markup=False)
