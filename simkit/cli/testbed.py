"""`simkit testbed`: serve a workload for real on this machine's device, beside its prediction."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from simkit.cli import options

DEFAULT_OUT = Path("simkit-testbed")

RunsOn = Annotated[str | None, typer.Option("--device", help="cuda or cpu; default cuda where there is one.")]
Layers = Annotated[int | None, typer.Option(min=1, help="Of the model's layers, for small machines.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads, bound to as many cores.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 .., of weights and cache.")]
ClockName = Annotated[str | None, typer.Option("--clock", help="wall, or processor on a CPU that others share.")]
StepLogs = Annotated[
    list[Path] | None, typer.Option("--steps", help="Predict by a fit of these logs; repeat for more.")
]
Calibrate = Annotated[
    bool | None, typer.Option("--calibrate/--no-calibrate", help="Predict by a short calibration; the default.")
]


def run_testbed(
    config: options.ConfigPath = None,
    model: options.Model = None,
    device: RunsOn = None,
    layers: Layers = None,
    threads: Threads = None,
    dtype: Dtype = None,
    clock: ClockName = None,
    trace: options.Trace = None,
    trace_format: options.Format = None,
    preset: options.Preset = None,
    generate: options.Generate = None,
    arrivals: options.Arrivals = None,
    cv: options.Cv = None,
    requests: options.Requests = None,
    rate: options.Rate = None,
    profile: options.Profile = None,
    steps: StepLogs = None,
    calibrate: Calibrate = None,
    seed: options.Seed = None,
    settings: options.Set = None,
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """Serve a workload in real time with a decoder of random weights, and print measured beside predicted.

    Writes measured.jsonl.gz (simkit-measured-run-1), what was fitted, comparison.json and report.html.
    """
    from simkit.cli.testbed_run import read_testbed_config, serve, step_time_source
    from simkit.report.directory import prepare

    given = options.overrides(
        model, None, None, trace, trace_format, preset, generate, arrivals, cv, requests, rate,
        False, False, False, profile, None, seed, settings,
    )  # fmt: skip
    own = (("device", device), ("layers", layers), ("threads", threads), ("dtype", dtype), ("clock", clock))
    given += [(f"testbed.{name}", value) for name, value in own if value is not None]
    resolved = read_testbed_config(config, given)
    source = step_time_source(resolved, steps or [], calibrate)
    folder = out if out is not None or json else DEFAULT_OUT
    if folder is not None:
        prepare(folder)
    with tempfile.TemporaryDirectory() as scratch:
        serve(resolved, source, steps or [], folder, Path(scratch), json)
