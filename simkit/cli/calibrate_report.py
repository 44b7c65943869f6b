"""`simkit calibrate report`: how wrong a profile's fitted times are on points that the fit did not see."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simkit.cli import options
from simkit.cli.console import answers, emit_json, people, waiting_for
from simkit.errors import InputError

if TYPE_CHECKING:
    from simkit.calibrate.operator_errors import OperatorError, Predicted
    from simkit.calibrate.operator_profile import Header

SIZE_OF = {
    "gemm": ("tokens", "tokens"),
    "moe": ("tokens", "tokens"),
    "elementwise": ("bytes", "bytes"),
    "collective": ("bytes", "bytes"),
    "attention_decode": ("context_tokens", "tokens of context, all requests"),
    "attention_prefill": ("chunk", "tokens of a chunk"),
    "attention_mixed": ("chunk", "tokens of the chunk"),
    "mla_decode": ("context_tokens", "tokens of context, all requests"),
    "mla_prefill": ("chunk", "tokens of a chunk"),
    "sampling": ("rows", "rows"),
    "host": ("requests", "requests"),
    "copy": ("bytes", "bytes"),
}


def report(
    profile: Annotated[Path, typer.Argument(help="A profile's directory.")],
    out: Annotated[Path | None, typer.Option(help="An HTML file to write, with plots.")] = None,
    json: options.Json = False,
) -> None:
    """Fit a profile without some of its points and say how wrong it is on these, by operator and regime.

    Held out are the points that were measured to be, else whole regions of sizes, never random rows.
    """
    from simkit.calibrate.operator_errors import errors, held_out_predictions
    from simkit.calibrate.operator_profile import read_operator_profile

    if not profile.is_dir():
        raise InputError(f"{profile}: is no directory of operators; a whole-step profile holds its errors itself")
    with waiting_for("fitting and predicting"):
        read = read_operator_profile(profile)
        predicted = list(held_out_predictions(read))
    if not predicted:
        raise InputError(f"{profile}: no table is large enough to hold a region of it out; measure more points")
    found = [error for region in predicted for error in errors(region)]
    if out is not None:
        _write(out, read.header, predicted, found)
    if json:
        emit_json(
            {
                "profile": read.header.model_dump(mode="json"),
                "rules": {f"{one.table}: {one.region}": one.rule for one in predicted},
                "errors": [error.model_dump(mode="json") for error in found],
            }
        )
        return
    _show(read.header, found)
    if out is not None:
        people.print(f"report: {out}", markup=False)


def _show(header: "Header", found: "Sequence[OperatorError]") -> None:
    from rich.table import Table
    from rich.text import Text

    people.print(f"{header.name}: errors on points that the fit did not see", markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("operator", "held out", "part"):
        table.add_column(name)
    for name in ("points", "MAPE", "p50", "p90", "p95", "worst", "bias"):
        table.add_column(name, justify="right")
    for error in found:
        sizes = (error.mape, error.p50, error.p90, error.p95, error.worst)
        table.add_row(
            Text(error.table),
            Text(error.region),
            Text(error.part),
            f"{error.rows:,}",
            *(f"{100 * size:.1f} %" for size in sizes),
            f"{100 * error.bias:+.1f} %",
            style="bold" if error.part == "all" else None,
        )
    answers.print(table)


def _write(out: Path, header: "Header", predicted: "Sequence[Predicted]", found: "Sequence[OperatorError]") -> None:
    from simkit.report.calibration import Cloud, ErrorLine, render_calibration

    lines = [
        ErrorLine(
            e.table, e.region, e.part, e.rows, e.mape, e.low, e.high, e.p50, e.p90, e.p95, e.worst, e.bias
        )
        for e in found
    ]  # fmt: skip
    clouds = []
    for one in predicted:
        column, said = SIZE_OF[one.table]
        clouds.append(
            Cloud(
                name=f"{one.table}-{one.region}".replace(" ", "-").replace("_", "-"),
                heading=f"{one.table.replace('_', ' ')}: {one.region}",
                rule=one.rule,
                predicted_ns=one.times.ns,
                measured_ns=one.rows["median_ns"].to_numpy(float),
                size=one.rows[column].to_numpy(float),
                size_name=said,
            )
        )
    notes = [f"{header.origin.kind}: {header.origin.name} {header.origin.version}".strip(), *header.notes]
    data = {"profile": header.model_dump(mode="json"), "errors": [error.model_dump(mode="json") for error in found]}
    page = render_calibration(f"Errors of {header.name}", notes, lines, clouds, data)
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}; name another file") from None
