"""`simkit plan`: the cheapest fleet for a demand, or the highest load that one replica holds within its targets."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simkit.cli import options
from simkit.cli.console import emit_json, people, progress, to_json, waiting_for
from simkit.errors import InputError, PartialResultError, TargetNotMetError

if TYPE_CHECKING:
    from simkit.cli.config import Config
    from simkit.engine.deployment import ReplicaSpec
    from simkit.plan.capacity import Capacity
    from simkit.workloads.workload import Workload

DEFAULT_OUT = Path("simkit-result")
DEFAULT_SEEDS = 5
STEP_TIME_FACTORS = (1.0, 0.9, 1.1)
LOW_LOADS = (0.25, 0.5, 0.75)
TYPICAL_PROBES = 7  # a bisection's, for the progress bar


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
    from simkit.cli.config import read_config_as, resolve_replica
    from simkit.cli.fleet_plan import PlanConfig, fleet_plan
    from simkit.metrics.slo import promise
    from simkit.plan.parallel import Workers
    from simkit.report.directory import prepare

    wanted = options.overrides(
        model, device, tp, trace, trace_format, preset, generate, arrivals, cv, requests, rate,
        sort, skip_bad_rows, spread_ticks, profile, slo, seed, settings,
    )  # fmt: skip
    wanted += options.own_columns(columns, time_unit)
    wanted += options.step_time(uncalibrated)
    wanted += _fleet_overrides(demand, users, per_user_hour, devices, robust, sure, front)
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
    spec = resolve_replica(resolved)
    workloads, answers = _search(resolved, spec, seeds if resolved.workload.seeded else 1)
    tree = _tree(resolved, spec, workloads, answers)
    if folder is not None:
        _write(folder, resolved, spec, workloads[0], answers, tree)
    if json:
        emit_json(tree)
    else:
        _show(spec, workloads[0], answers, folder)
    nominal = answers[1.0][0]
    if not tree["complete"]:
        raise PartialResultError("interrupted; fewer workloads or step times than asked, as the answer says")
    if nominal.rate_per_s is None:
        raise TargetNotMetError(_infeasible(nominal, resolved.slo))


def _fleet_overrides(
    demand: float | None,
    users: int | None,
    per_user_hour: float | None,
    devices: str | None,
    robust: str | None,
    sure: float | None,
    front: bool,
) -> list[tuple[str, object]]:
    """(dotted key, value) of the flags that ask for a fleet."""
    given: list[tuple[str, object]] = [
        ("plan.demand.rate_per_s", demand),
        ("plan.demand.users.count", users),
        ("plan.demand.users.requests_per_user_hour", per_user_hour),
        ("plan.search.devices", None if devices is None else [name.strip() for name in devices.split(",")]),
        ("plan.robust", None if robust is None else [name.strip() for name in robust.split(",")]),
        ("plan.sure", sure),
        ("plan.front", front or None),
    ]
    return [(key, value) for key, value in given if value is not None]


def _search(config: "Config", spec: "ReplicaSpec", seeds: int) -> "tuple[list[Workload], dict[float, list[Capacity]]]":
    """The workloads drawn, and per step-time factor the answer for each of them."""
    from simkit.cli.config import load_workload
    from simkit.engine.warm_up import warm_up
    from simkit.plan.capacity import find_capacity

    with waiting_for("reading the workload"):
        workloads = [load_workload(config.workload, config.seed + i) for i in range(seeds)]
    with waiting_for("compiling the engine, which is kept for later runs"):
        warm_up(spec.deployment.engine.discipline)
    answers: dict[float, list[Capacity]] = {}
    with progress("replays", len(STEP_TIME_FACTORS) * seeds * TYPICAL_PROBES) as on_progress:
        counted = _counter(on_progress)
        guess = None
        try:
            for factor in STEP_TIME_FACTORS:
                for workload in workloads:
                    found = find_capacity(spec, workload, config.slo, factor, lambda _: counted(), guess)
                    answers.setdefault(factor, []).append(found)
                    guess = found.rate_per_s
        except KeyboardInterrupt:
            if not answers:
                raise PartialResultError("interrupted before the first answer; nothing was written") from None
    return workloads, answers


def _counter(on_progress: Callable[[int], None]) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_progress(done)

    return count


def _rates(answers: "Sequence[Capacity]") -> dict[str, float | None]:
    """Median, lowest and highest of the rates found; None where some workload has none."""
    from simkit.plan.capacity import spread

    rates = [answer.rate_per_s for answer in answers if answer.rate_per_s is not None]
    if len(rates) < len(answers):
        return {"median": None, "lowest": None, "highest": max(rates, default=None)}
    return dict(zip(("median", "lowest", "highest"), spread(rates), strict=True))


def _tree(
    config: "Config",
    spec: "ReplicaSpec",
    workloads: "Sequence[Workload]",
    answers: "dict[float, list[Capacity]]",
) -> dict[str, object]:
    """The answer as JSON."""
    from simkit.cli.run import step_time_source
    from simkit.versions import versions

    nominal = answers[1.0]
    best = nominal[0].at_capacity
    searched = sum(len(found) for found in answers.values())
    return {
        "complete": searched == len(workloads) * len(STEP_TIME_FACTORS),
        "rate_per_s": _rates(nominal),
        "workloads_drawn": len(nominal),
        "binding": nominal[0].binding,
        "throughput_bound_per_s": nominal[0].bound_per_s,
        "at_capacity": None if best is None else {**vars(best.point), "measured_s": dict(best.measured)},
        "step_time_sensitivity": {f"{factor:g}": _rates(answers[factor]) for factor in sorted(answers)},
        "probes": [{**vars(probe.point), "holds": probe.holds, "missed": probe.missed} for probe in nominal[0].probes],
        "step_time": step_time_source(spec),
        "memory_bytes": dict(spec.memory.rows()),
        "kv_blocks": spec.num_blocks,
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": versions(),
    }


def _write(
    folder: Path,
    config: "Config",
    spec: "ReplicaSpec",
    workload: "Workload",
    answers: "dict[float, list[Capacity]]",
    tree: dict[str, object],
) -> None:
    """plan.json, and the result directory of a run at the rate found (or at the lowest tried)."""
    import yaml

    from simkit.cli.run import full_summary
    from simkit.plan.sweep import load_point, mean_rate, replay
    from simkit.report.data import ReportData, Sensitivity
    from simkit.report.directory import write_atomically, write_result
    from simkit.workloads.transform import rate_to

    nominal = answers[1.0][0]
    rate = nominal.rate_per_s or nominal.probes[0].point.rate_per_s
    at_rate = rate_to(workload, rate)
    result = replay(spec, at_rate)
    sensitivity = [
        Sensitivity(factor, load_point(replay(spec, at_rate, step_time_factor=factor), 1.0, rate, config.slo))
        for factor in STEP_TIME_FACTORS
        if factor != 1.0
    ]
    # in the report the rate found is load 1
    scale = mean_rate(workload) / rate
    curve = [
        probe.point.__class__(**{**vars(probe.point), "load": probe.point.load * scale}) for probe in nominal.probes
    ]
    data = ReportData(
        title=f"{spec.architecture.name} on {spec.device.name}: {workload.name} at {rate:.2f} requests/s",
        result=result,
        summary=full_summary(config, spec, at_rate, result),
        config=config.model_dump(mode="json"),
        sweep=curve,
        sensitivity=sensitivity,
        slo=config.slo,
    )
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_result(folder, data, to_json(data.summary), text)
    write_atomically(folder / "plan.json", (to_json(tree) + "\n").encode())


def _show(
    spec: "ReplicaSpec", workload: "Workload", answers: "dict[float, list[Capacity]]", folder: Path | None
) -> None:
    """The answer for people."""
    from simkit.report.table import load_table, memory_table

    nominal = answers[1.0]
    people.print(f"[bold]{spec.architecture.name} on {spec.device.name}[/bold], workload {workload.name}")
    people.print(memory_table(spec.memory.rows(), spec.memory.total_bytes))
    chosen = nominal[0].at_capacity
    people.print(load_table([probe.point for probe in nominal[0].probes], chosen.point.load if chosen else None))
    people.print()
    if chosen is not None:
        found = _rates(nominal)
        several = f" (lowest {found['lowest']:.2f}, highest {found['highest']:.2f} of {len(nominal)} workloads drawn)"
        people.print(
            f"[bold green]{found['median'] or found['highest']:.2f} requests/s[/bold green] on one replica"
            + (several if len(nominal) > 1 and found["median"] is not None else "")
            + f"; above it {_reason(nominal[0].binding)}"
        )
        for factor in sorted(set(answers) - {1.0}):
            other = _rates(answers[factor])["median"]
            said = "no rate holds" if other is None else f"{other:.2f} requests/s"
            people.print(f"  if steps took {factor:g} times as long: {said}")
    people.print(f"step times: {spec.provenance}, {spec.provenance_note}", markup=False, style="yellow")
    if folder is not None:
        people.print(f"report: {folder / 'report.html'}", markup=False)


def _reason(missed: str) -> str:
    if missed == "saturated":
        return "the queue keeps growing"
    return f"{missed.removesuffix('_s').replace('_', ' ')} misses its target"


def _infeasible(answer: "Capacity", slo: dict[str, float]) -> str:
    """What binds at the lowest rate tried, by how much, and what would be feasible."""
    lowest = answer.probes[0]
    rate = lowest.point.rate_per_s
    gaps = [
        f"{key} is {value:.4g} against {slo[key]:g}" for key, value in lowest.measured.items() if key in lowest.missed
    ]
    what = "; ".join(gaps) or _reason(lowest.missed[0])
    return (
        f"no rate meets the targets: even at {rate:.3g} requests/s {what}; "
        "relax that target, or choose a faster device, more tensor parallelism (--tp) or a smaller model"
    )
