"""`simkit run`: one deployment serves one workload."""

from pathlib import Path
from typing import TYPE_CHECKING

from simkit.cli import options
from simkit.cli.console import emit_json, nothing_yet, people, progress, summing_up, to_json, waiting_for
from simkit.errors import InputError, PartialResultError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simkit.cli.config import Config
    from simkit.engine.deployment import ReplicaSpec
    from simkit.metrics.result import RunResult
    from simkit.report.directory import Rows
    from simkit.workloads.workload import Workload

DEFAULT_OUT = Path("simkit-result")
LOADS = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5)
STEP_TIME_FACTORS = (0.9, 1.1)
SWEEP_REQUESTS = 20_000  # of a longer workload the curve replays so many: 200 of them lie beyond its p99


def run(
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
    settings: options.Set = None,
    out: options.Out = None,
    rows: options.Rows = "csv",
    json: options.Json = False,
) -> None:
    """Serve a workload on a replica or a cluster: latencies, throughput, memory, and which side of the knee it is on.

    Writes a result directory with report.html, summary.json, requests.csv.gz and trace.json.gz.
    """
    with nothing_yet():
        from simkit.cli.cluster import RunConfig, run_cluster
        from simkit.cli.config import load_workload, read_config_as, resolve_replica
        from simkit.engine.warm_up import warm_up
        from simkit.plan.sweep import replay
        from simkit.report.directory import check_rows, prepare

        wanted = options.overrides(
            model, device, tp, trace, trace_format, preset, generate, arrivals, cv, requests, rate,
            sort, skip_bad_rows, spread_ticks, profile, slo, seed, settings,
        )  # fmt: skip
        wanted += options.own_columns(columns, time_unit)
        wanted += options.step_time(uncalibrated)
        resolved = read_config_as(RunConfig, config, wanted)
        form = check_rows(rows)
        folder = out if out is not None or json else DEFAULT_OUT
        if folder is not None:
            prepare(folder)
    if resolved.cluster is not None:
        run_cluster(resolved, folder, form, json)
        return
    engines = resolved.deployment.layout.data
    if engines > 1:
        raise InputError(
            f"deployment.layout.data={engines}: a replica is {engines} engines; describe it by cluster: "
            f"{{pools: [{{name: all, data_parallel: {engines}}}], router: data_parallel}}"
        )
    with nothing_yet():
        spec = resolve_replica(resolved)
        with waiting_for("reading the workload"):
            workload = load_workload(resolved.workload, resolved.seed)
        with waiting_for("compiling the engine, which is kept for later runs"):
            warm_up(spec.deployment.engine.discipline)
    with progress("requests", len(workload)) as on_progress:
        result = replay(spec, workload, on_progress=on_progress, keep_partial=True)
    with summing_up():
        summary = full_summary(resolved, spec, workload, result)
        whole = result.complete
        if folder is not None:
            whole = _write(folder, resolved, spec, workload, result, summary, form) and whole
        if json:
            emit_json(summary)
        else:
            _show(spec, workload, summary, resolved.slo, folder)
    if not whole:
        raise PartialResultError("interrupted; what is printed or written is partial and says so")


def full_summary(
    config: "Config",
    spec: "ReplicaSpec",
    workload: "Workload",
    result: "RunResult",
    replicas: "Sequence[RunResult] | None" = None,
) -> dict[str, object]:
    """The summary with all that it rests on: resolved configuration, memory, versions, seed.

    `replicas` are the runs of a fleet of which `result` is the sum.
    """
    from simkit.metrics.summary import summarize
    from simkit.versions import versions

    return {
        **summarize(result, config.slo),
        "step_time": {**step_time_source(spec), **step_time_known(spec, replicas or [result])},
        "memory_bytes": dict(spec.memory.rows()),
        "engine": spec.limits._asdict(),
        "workload": {
            "name": workload.name,
            "requests": len(workload),
            "source": workload.source,
            "transforms": list(workload.transforms),
            "dropped_rows": workload.dropped_rows,
            "notes": list(workload.notes),
        },
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": versions(),
    }


def step_time_source(spec: "ReplicaSpec") -> dict[str, object]:
    """Where the step times come from, in words that go with every number."""
    return {"provenance": spec.provenance, "note": spec.provenance_note}


def step_time_known(spec: "ReplicaSpec", runs: "Sequence[RunResult]") -> dict[str, object]:
    """The share of the steps' time that was measured, interpolated, extrapolated, assumed, where a profile says."""
    from simkit.metrics.step_time_shares import step_time_shares

    if spec.known is None:
        return {}
    return {"share_of_time": step_time_shares(runs, spec.known, spec.kv_tokens)}


def _write(
    folder: Path,
    config: "Config",
    spec: "ReplicaSpec",
    workload: "Workload",
    result: "RunResult",
    summary: dict[str, object],
    rows: "Rows",
) -> bool:
    """The result directory, with the same workload at other loads and step times beside the run itself.

    Returns whether all of these were replayed; an interrupt leaves out those still to come.
    """
    import yaml

    from simkit.metrics.load import LoadPoint
    from simkit.plan.sweep import load_point, mean_rate, replay, sweep
    from simkit.report.data import ReportData, Sensitivity
    from simkit.report.directory import write_result
    from simkit.workloads.transform import take

    curve: list[LoadPoint] = []
    sensitivity: list[Sensitivity] = []
    rate = mean_rate(workload)
    if result.complete and rate == rate:
        part = take(workload, SWEEP_REQUESTS) if len(workload) > SWEEP_REQUESTS else workload
        try:
            with progress("other loads", len(LOADS) + len(STEP_TIME_FACTORS)) as on_progress:
                for load in LOADS:
                    curve += sweep(spec, part, [load], config.slo)
                    on_progress(len(curve))
                for factor in STEP_TIME_FACTORS:
                    other = replay(spec, part, step_time_factor=factor)
                    sensitivity.append(Sensitivity(factor, load_point(other, 1.0, mean_rate(part), config.slo)))
                    on_progress(len(curve) + len(sensitivity))
        except KeyboardInterrupt:
            people.print("interrupted: the report goes without the loads still to be replayed", style="yellow")
    data = ReportData(
        title=f"{spec.architecture.name} on {spec.device.name}: {workload.name}",
        result=result,
        summary=summary,
        config=config.model_dump(mode="json"),
        sweep=curve,
        sensitivity=sensitivity,
        slo=config.slo,
    )
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_result(folder, data, to_json(summary), text, rows)
    return len(curve) + len(sensitivity) in (0, len(LOADS) + len(STEP_TIME_FACTORS))


def _show(
    spec: "ReplicaSpec",
    workload: "Workload",
    summary: dict[str, object],
    slo: dict[str, float],
    folder: Path | None,
) -> None:
    from simkit.report.data import at
    from simkit.report.table import memory_table, summary_table

    people.print(f"[bold]{spec.architecture.name} on {spec.device.name}[/bold], workload {workload.name}")
    for note in workload.notes:
        people.print(f"note: {note}", markup=False)
    people.print(memory_table(spec.memory.rows(), spec.memory.total_bytes))
    people.print(summary_table(summary, slo))
    known = at(summary, "step_time", "share_of_time")
    if isinstance(known, dict):
        people.print("steps' time: " + ", ".join(f"{share:.0%} {word}" for word, share in known.items()))
    if folder is not None:
        people.print(f"report: {folder / 'report.html'}", markup=False)
