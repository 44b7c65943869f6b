"""`simkit workload`: look at traces, turn them into other formats, draw new ones."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simkit.cli import options
from simkit.cli.console import answers, emit_json, people, waiting_for

if TYPE_CHECKING:
    from simkit.workloads.describe import Description, LengthSummary
    from simkit.workloads.format import Format
    from simkit.workloads.workload import Workload

app = typer.Typer(help="Describe, convert and generate workloads.", no_args_is_help=True)

Input = Annotated[Path, typer.Argument(help="A trace file, plain, gzip or zstd.")]
To = Annotated[str, typer.Option("--to", help="simkit, mooncake, azure or vidur.")]


@app.command()
def describe(
    trace: Input,
    trace_format: options.Format = None,
    columns: options.Columns = None,
    time_unit: options.TimeUnit = None,
    sort: options.Sort = False,
    skip_bad_rows: options.SkipBadRows = False,
    spread_ticks: options.SpreadTicks = False,
    json: options.Json = False,
) -> None:
    """Rate, burstiness, lengths and prefix sharing of a trace."""
    from simkit.workloads.describe import describe as describe_workload
    from simkit.workloads.transform import without_lead_in

    form = _format(trace_format, columns, time_unit)
    workload = _read(trace, form, sort, skip_bad_rows, spread_ticks)
    found = describe_workload(without_lead_in(workload))
    if json:
        emit_json(asdict(found))
    else:
        _show(found)


@app.command()
def convert(
    trace: Input,
    target: Annotated[Path, typer.Argument(help="The file to write; .gz and .zst are packed.")],
    to: To = "simkit",
    trace_format: options.Format = None,
    columns: options.Columns = None,
    time_unit: options.TimeUnit = None,
    sort: options.Sort = False,
    skip_bad_rows: options.SkipBadRows = False,
    spread_ticks: options.SpreadTicks = False,
    arrivals: options.Arrivals = None,
    rate: options.Rate = None,
    cv: options.Cv = None,
    seed: Annotated[int, typer.Option(help="Of arrivals that are drawn.")] = 0,
) -> None:
    """Write a trace in another format; what that format cannot hold is said."""
    form = _format(trace_format, columns, time_unit)
    workload = _read(trace, form, sort, skip_bad_rows, spread_ticks, arrivals, rate, cv, seed)
    _write(workload, target, to)


@app.command()
def generate(
    spec: Annotated[str, typer.Argument(help="A generator's YAML, or the name of a preset.")],
    target: Annotated[Path, typer.Argument(help="The file to write; .gz and .zst are packed.")],
    to: To = "simkit",
    requests: options.Requests = None,
    rate: options.Rate = None,
    arrivals: options.Arrivals = None,
    cv: options.Cv = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Draw a workload; the same spec and seed give the same file."""
    from simkit.cli.config import load_workload, read_workload_source
    from simkit.workloads.presets import known_presets

    source = {"preset": spec} if spec in known_presets() else {"generate": spec}
    given = {"requests": requests, "rate": rate, "arrivals": arrivals, "cv": cv}
    chosen = read_workload_source({**source, **{key: value for key, value in given.items() if value is not None}})
    _write(load_workload(chosen, seed), target, to)


@app.command()
def presets(json: options.Json = False) -> None:
    """The workloads that come with simkit: statistics of public traces."""
    from simkit.workloads.presets import known_presets, load_preset

    found = [load_preset(name) for name in known_presets()]
    if json:
        emit_json({"presets": [{"name": one.name, "licence": one.licence} for one in found]})
        return
    for one in found:
        typer.echo(f"{one.name:24} {one.licence}")


def _format(name: str | None, columns: str | None, time_unit: str | None) -> "Format | str | None":
    """A format by name, or one of the user's own columns; None: to be recognised."""
    from simkit.cli.config import read_workload_source
    from simkit.workloads.own_columns import own_format

    # a trace has to be named for the section to be whole; which one makes no difference to its format
    section: dict[str, object] = {"trace": "trace.csv", "format": name}
    section |= {key.removeprefix("workload."): value for key, value in options.own_columns(columns, time_unit)}
    source = read_workload_source(section)
    return name if source.columns is None else own_format(source.columns, source.time_unit)


def _read(
    path: Path,
    trace_format: "Format | str | None",
    sort: bool,
    skip_bad_rows: bool,
    spread_ticks: bool,
    arrivals: str | None = None,
    rate: float | None = None,
    cv: float | None = None,
    seed: int = 0,
) -> "Workload":
    from simkit.errors import InputError
    from simkit.workloads.arrivals import arrival_spec
    from simkit.workloads.readers import read_workload

    if (arrivals is None) != (rate is None):
        raise InputError("--arrivals and --rate go together here: --arrivals poisson --rate 1")
    if cv is not None and arrivals is None:
        raise InputError(
            f"--cv {cv:g}: is of the gaps that --arrivals draws; give --arrivals gamma --rate 1, or leave it out"
        )
    times = None if arrivals is None or rate is None else arrival_spec(arrivals, rate, cv)
    with waiting_for(f"reading {path.name}"):
        workload = read_workload(
            path,
            trace_format,
            sort=sort,
            skip_bad_rows=skip_bad_rows,
            spread_ticks=spread_ticks,
            arrivals=times,
            seed=seed,
        )
    for note in workload.notes:
        people.print(f"note: {note}", markup=False)
    for reason, rows in workload.dropped_rows.items():
        people.print(f"dropped {rows:,} rows: {reason}", markup=False)
    return workload


def _write(workload: "Workload", target: Path, to: str) -> None:
    from simkit.workloads.write import write_workload

    with waiting_for(f"writing {target.name}"):
        lost = write_workload(workload, target, to)
    if lost:
        people.print(f"{to} cannot hold: {', '.join(lost)}", markup=False)
    people.print(f"{target}: {len(workload):,} requests", markup=False)


def _show(found: "Description") -> None:
    from rich.table import Table

    rate = "-" if found.rate_per_s is None else f"{found.rate_per_s:.3f} requests/s"
    answers.print(f"{found.name}: {found.requests:,} requests in {found.span_s:,.1f} s, {rate}", markup=False)
    if found.gap_cv is not None:
        answers.print(f"gaps between arrivals: CV {found.gap_cv:.3f} (1 is Poisson)")
    for counts in found.counts:
        answers.print(
            f"arrivals per {counts.window_s} s: dispersion {counts.dispersion:.2f}, peak/mean {counts.peak_to_mean:.2f}"
        )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("tokens", "mean", *(f"p{100 * q:g}" for q in found.prompt_tokens.quantiles)):
        table.add_column(column, justify="right")
    for name, lengths in (("prompt", found.prompt_tokens), ("output", found.output_tokens)):
        table.add_row(name, *_numbers(lengths))
    answers.print(table)
    if found.rank_correlation is not None:
        answers.print(f"rank correlation of prompt and output: {found.rank_correlation:.2f}")
    if found.sharing is not None:
        share = found.sharing
        answers.print(
            f"prefix sharing, cache without limit: {100 * share.token_hit_rate:.2f} % of tokens, "
            f"{100 * share.block_hit_rate:.2f} % of blocks of {share.block_tokens} tokens, "
            f"{100 * share.requests_hit:.1f} % of requests"
        )
    if found.tick_us > 1:
        answers.print(f"arrivals are rounded to {found.tick_us / 1e6:g} s; --spread-ticks spreads them")


def _numbers(lengths: "LengthSummary") -> list[str]:
    return [f"{lengths.mean:,.1f}", *(f"{value:,.0f}" for value in lengths.quantiles.values())]
