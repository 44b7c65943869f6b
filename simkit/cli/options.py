"""The flags that `run` and `plan` share; each is a key of the configuration."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.errors import InputError
from simkit.metrics.slo import ATTAINMENT, GOODPUT

ConfigPath = Annotated[Path | None, typer.Argument(help="YAML with deployment, workload and slo; flags overrule it.")]
Model = Annotated[str | None, typer.Option(help="Name from `simkit models`, or a config.json of Hugging Face's form.")]
Device = Annotated[str | None, typer.Option(help="Name from `simkit devices`, or a YAML of your own.")]
Tensor = Annotated[int | None, typer.Option("--tp", help="Tensor parallel GPUs.")]
Trace = Annotated[Path | None, typer.Option(help="A trace file, plain, gzip or zstd.")]
Format = Annotated[str | None, typer.Option("--format", help="The trace's format, where it is not recognised.")]
Columns = Annotated[str | None, typer.Option(help="A CSV's own names: arrival=ts,prompt=in,output=out[,session=..].")]
TimeUnit = Annotated[str | None, typer.Option(help="Of the arrivals of such a CSV: s, ms, us, or clock.")]
Preset = Annotated[str | None, typer.Option(help="A bundled workload, see `simkit workload presets`.")]
Generate = Annotated[Path | None, typer.Option(help="A generator's YAML.")]
Arrivals = Annotated[str | None, typer.Option(help="Arrival process in place of the source's own: poisson, gamma ..")]
Cv = Annotated[float | None, typer.Option(help="Coefficient of variation of the gaps, for gamma and weibull.")]
Requests = Annotated[int | None, typer.Option("--requests", "-n", help="At most so many requests.")]
Rate = Annotated[float | None, typer.Option(help="Requests a second, by scaling all gaps between arrivals.")]
Sort = Annotated[bool, typer.Option("--sort", help="Sort the trace by arrival.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Count malformed rows instead of stopping.")]
SpreadTicks = Annotated[bool, typer.Option("--spread-ticks", help="Spread arrivals rounded to coarse ticks.")]
Profile = Annotated[Path | None, typer.Option(help="Step times from `simkit calibrate`; default those that ship.")]
Uncalibrated = Annotated[bool, typer.Option("--uncalibrated", help="Step times by a roofline of datasheet figures.")]
Slo = Annotated[list[str] | None, typer.Option("--slo", help="Target in seconds, ttft_p99=0.5; repeat for more.")]
Seed = Annotated[int | None, typer.Option(help="Of everything random.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any other key, deployment.engine.block_size=32.")]
Rows = Annotated[str, typer.Option(help="Per-request rows of the result: csv, parquet or off.")]
Out = Annotated[Path | None, typer.Option(help="The result directory; with --json nothing is written unless given.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def overrides(
    model: str | None,
    device: str | None,
    tensor: int | None,
    trace: Path | None,
    trace_format: str | None,
    preset: str | None,
    generate: Path | None,
    arrivals: str | None,
    cv: float | None,
    requests: int | None,
    rate: float | None,
    sort: bool,
    skip_bad_rows: bool,
    spread_ticks: bool,
    profile: Path | None,
    slo: list[str] | None,
    seed: int | None,
    settings: list[str] | None,
) -> list[tuple[str, object]]:
    """(dotted key, value) of every flag that was given."""
    given: list[tuple[str, object]] = [
        ("deployment.model", model),
        ("deployment.device", device),
        ("deployment.layout.tensor", tensor),
        ("workload.trace", None if trace is None else str(trace)),
        ("workload.format", trace_format),
        ("workload.preset", preset),
        ("workload.generate", None if generate is None else str(generate)),
        ("workload.arrivals", arrivals),
        ("workload.cv", cv),
        ("workload.requests", requests),
        ("workload.rate", rate),
        ("workload.sort", sort or None),
        ("workload.skip_bad_rows", skip_bad_rows or None),
        ("workload.spread_ticks", spread_ticks or None),
        ("profile", None if profile is None else str(profile)),
        ("seed", seed),
    ]
    found = [(key, value) for key, value in given if value is not None]
    found += [_target(text) for text in slo or []]
    found += [setting(text) for text in settings or []]
    return found


def step_time(uncalibrated: bool) -> list[tuple[str, object]]:
    """(dotted key, value) of the flag."""
    return [("deployment.step_time", "uncalibrated")] if uncalibrated else []


def own_columns(columns: str | None, time_unit: str | None) -> list[tuple[str, object]]:
    """(dotted key, value) of a CSV's own column names."""
    found: list[tuple[str, object]] = []
    if columns is not None:
        pairs = [part.partition("=") for part in columns.split(",")]
        if not all(role.strip() and name.strip() for role, _, name in pairs):
            raise InputError(f"--columns {columns}: ROLE=NAME is wanted, for instance arrival=ts,prompt=in,output=out")
        found.append(("workload.columns", {role.strip(): name.strip() for role, _, name in pairs}))
    if time_unit is not None:
        found.append(("workload.time_unit", time_unit))
    return found


def _target(text: str) -> tuple[str, object]:
    """`ttft_p99=0.5` or `ttft_p99_s=0.5` as a key of the configuration."""
    name, separator, value = text.partition("=")
    try:
        limit = float(value)
    except ValueError:
        separator = ""
        limit = 0.0
    if not separator:
        raise InputError(f"--slo {text}: a target is METRIC_STATISTIC=SECONDS, for instance --slo ttft_p99=0.5")
    if name in (ATTAINMENT, GOODPUT):
        return f"slo.{name}", limit
    return f"slo.{name.removesuffix('_s')}_s", limit


def setting(text: str) -> tuple[str, object]:
    """`a.b=c` with c read as YAML."""
    import yaml

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise InputError(f"--set {text}: a setting is KEY=VALUE, for instance --set deployment.engine.block_size=32")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: {value!r} is not a YAML value; quote it") from None
