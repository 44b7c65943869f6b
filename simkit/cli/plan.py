"""`simkit plan`: the cheapest fleet for a demand, or the highest load that one replica holds within its targets."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.cli import options
from simkit.cli.console import nothing_yet
from simkit.errors import InputError

DEFAULT_OUT = Path("simkit-result")
DEFAULT_SEEDS = 5


def plan(
    config: options.ConfigPath = None,
    model: options.Model = None,
    device: options.Device = None,
    tp: options.Tensor = None,
    trace: options.Trace = None,
    trace_format: options.Format = None,
    columns: options.Columns = None,
    time_unit: options.TimeUnit = None,
    preset: options.Preset = None,
    generate: options.Generate = None,
    arrivals: options.Arrivals = None,
    cv: options.Cv = None,
    requests: options.Requests = None,
    rate: options.Rate = None,
    sort: options.Sort = False,
    skip_bad_rows: options.SkipBadRows = False,
    spread_ticks: options.SpreadTicks = False,
    profile: options.Profile = None,
    uncalibrated: options.Uncalibrated = False,
    slo: options.Slo = None,
    seed: options.Seed = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Workloads to draw, where one is drawn.")] = DEFAULT_SEEDS,
    settings: options.Set = None,
    demand: Annotated[float | None, typer.Option(help="Requests a second that a fleet must serve.")] = None,
    users: Annotated[int | None, typer.Option(help="Users that it must serve, with --per-user-hour.")] = None,
    per_user_hour: Annotated[float | None, typer.Option(help="Requests a user sends an hour.")] = None,
    devices: Annotated[str | None, typer.Option(help="Devices to choose from, h100,l40s.")] = None,
    disaggregated: Annotated[
        str | None, typer.Option(help="Prefill and decode apart: together,1P1D,1P2D to choose from.")
    ] = None,
    robust: Annotated[str | None, typer.Option(help="Must hold too: n-1,burst,drift,growth,steps.")] = None,
    sure: Annotated[float | None, typer.Option(help="Keep the promise with this probability, 0.9.")] = None,
    front: Annotated[bool, typer.Option("--front", help="Answer every kind, for the whole Pareto front.")] = False,
    study: Annotated[Path | None, typer.Option(help="A file by which an interrupted search goes on.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Processes to search with.")] = 1,
    cluster: Annotated[str, typer.Option(help="ray: search on a Ray cluster (extra `cluster`).")] = "",
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """The cheapest deployment that meets every target, or the highest rate at which one replica does.

    With a `plan` section, or one of the flags from --demand on, many kinds of replica are searched for the cheapest
    fleet; else the highest rate of the one replica described is found. Exit code 3 if nothing holds.
    """
    with nothing_yet():
        from simkit.cli.config import read_config_as
        from simkit.cli.fleet_plan import PlanConfig, fleet_plan
        from simkit.cli.one_replica_plan import one_replica_plan
        from simkit.metrics.slo import promise
        from simkit.plan.parallel import Workers
        from simkit.report.directory import prepare

        wanted = options.overrides(
            model, device, tp, trace, trace_format, preset, generate, arrivals, cv, requests, rate,
            sort, skip_bad_rows, spread_ticks, profile, slo, seed, settings,
        )  # fmt: skip
        wanted += options.own_columns(columns, time_unit)
        wanted += options.step_time(uncalibrated)
        wanted += _fleet_overrides(demand, users, per_user_hour, devices, disaggregated, robust, sure, front)
        resolved = read_config_as(PlanConfig, config, wanted)
        if not promise(resolved.slo):
            raise InputError("slo: no target given; for instance --slo ttft_p99=1 --slo tpot_p99=0.05 (seconds)")
        if cluster not in ("", "ray"):
            raise InputError(f"--cluster {cluster}: is not known; ray is")
        folder = out if out is not None or json else DEFAULT_OUT
        if folder is not None:
            prepare(folder)
    if resolved.plan is not None:
        fleet_plan(resolved, folder, study, Workers(workers, "ray" if cluster else ""), json)
        return
    one_replica_plan(resolved, folder, seeds, json)


def _fleet_overrides(
    demand: float | None,
    users: int | None,
    per_user_hour: float | None,
    devices: str | None,
    disaggregated: str | None,
    robust: str | None,
    sure: float | None,
    front: bool,
) -> list[tuple[str, object]]:
    """(dotted key, value) of the flags that ask for a fleet."""
    given: list[tuple[str, object]] = [
        ("plan.demand.rate_per_s", demand),
        ("plan.demand.users.count", users),
        ("plan.demand.users.requests_per_user_hour", per_user_hour),
        ("plan.search.devices", _listed(devices)),
        ("plan.search.disaggregated", _listed(disaggregated)),
        ("plan.robust", _listed(robust)),
        ("plan.sure", sure),
        ("plan.front", front or None),
    ]
    return [(key, value) for key, value in given if value is not None]


def _listed(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",")]
