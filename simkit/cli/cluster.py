"""`simkit run` with a `cluster:` section: a fleet serves a workload."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from simkit.cli.cluster_pools import are_alike, fleet_title, pool_rows, stands_for_all
from simkit.cli.config import Config
from simkit.cli.console import emit_json, nothing_yet, people, progress, summing_up, to_json, waiting_for
from simkit.cluster.settings import Cluster
from simkit.errors import PartialResultError

if TYPE_CHECKING:
    from simkit.cluster.result import FleetResult
    from simkit.engine.deployment import Deployment, ReplicaSpec
    from simkit.report.data import Sensitivity
    from simkit.report.directory import Rows
    from simkit.workloads.workload import Workload

STEP_TIME_FACTORS = (0.9, 1.1)
SENSITIVITY_REQUESTS = 20_000  # of a longer workload so many are replayed with other step times


class RunConfig(Config):
    """What `simkit run` takes: one replica, or the cluster that is described."""

    cluster: Cluster | None = Field(default=None, description="a fleet in place of one replica")


def run_cluster(config: RunConfig, folder: Path | None, rows: "Rows", json: bool) -> None:
    """Serve the workload by the cluster; print, write the result directory, or emit JSON, as a run of one replica."""
    with nothing_yet():
        from simkit.cli.config import load_workload
        from simkit.cli.run import full_summary
        from simkit.cluster.heeded import check_heeded
        from simkit.cluster.merged import merged_run
        from simkit.cluster.moving import Moving
        from simkit.cluster.summary import fleet_summary
        from simkit.engine.deployment import with_whole_contexts
        from simkit.engine.warm_up import warm_up

        assert config.cluster is not None, "the caller looked"
        specs = {pool.name: _resolved(config, pool.deployment) for pool in config.cluster.all_pools()}
        if Moving(config.cluster.disaggregation, config.cluster.tiers):
            specs = {name: with_whole_contexts(each, partial(_resolved, config)) for name, each in specs.items()}
        spec = stands_for_all(specs)
        with waiting_for("reading the workload"):
            workload = load_workload(config.workload, config.seed)
        check_heeded(config.cluster, workload)
        with waiting_for("compiling the engine, which is kept for later runs"):
            for discipline in sorted({each.deployment.engine.discipline for each in specs.values()}):
                warm_up(discipline)
    with progress("requests", len(workload)) as on_progress:
        fleet = _served(config, workload, 1.0, on_progress)
    with summing_up():
        result = merged_run(fleet)
        pools = pool_rows(config.cluster, specs)
        summary = {
            **full_summary(config, spec, workload, result, fleet.replicas),
            "fleet": {**fleet_summary(fleet), "pools": pools},
        }
        if not are_alike(specs):
            del summary["memory_bytes"], summary["engine"]  # each pool's own are with it
        title = fleet_title(config.cluster, specs)
        if folder is not None:
            _write(folder, config, title, workload, fleet, summary, rows)
        if json:
            emit_json(summary)
        else:
            _show(title, workload, summary, config.slo, folder)
    if not fleet.complete:
        raise PartialResultError("interrupted; what is printed or written is partial and says so")


def _resolved(config: RunConfig, deployment: "Deployment | None", step_time_factor: float = 1.0) -> "ReplicaSpec":
    """A pool's replica, the configuration's own where it names none."""
    from simkit.cli.config import resolve_replica
    from simkit.models.steptables import scaled

    mine = config if deployment is None else config.model_copy(update={"deployment": deployment})
    spec = resolve_replica(mine)
    return spec if step_time_factor == 1.0 else replace(spec, tables=scaled(spec.tables, step_time_factor))


def _served(
    config: RunConfig, workload: "Workload", step_time_factor: float, on_progress: object = None
) -> "FleetResult":
    from collections.abc import Callable
    from typing import cast

    from simkit.cluster.serve import serve_cluster

    assert config.cluster is not None, "the caller looked"
    told = cast("Callable[[int], None] | None", on_progress)
    return serve_cluster(
        workload, config.cluster, lambda pool: _resolved(config, pool, step_time_factor), config.seed, told
    )


def _write(
    folder: Path,
    config: RunConfig,
    title: str,
    workload: "Workload",
    fleet: "FleetResult",
    summary: dict[str, object],
    rows: "Rows",
) -> None:
    """The result directory of a run, with the fleet's section, and the answer again at other step times."""
    import yaml

    from simkit.cluster.merged import merged_run, request_places
    from simkit.report.data import ReportData
    from simkit.report.directory import write_result

    resolved = config.model_dump(mode="json")
    data = ReportData(
        title=f"{title}: {workload.name}",
        result=merged_run(fleet),
        summary=summary,
        config=resolved,
        sensitivity=_sensitivity(config, workload) if fleet.complete else [],
        slo=config.slo,
        places=request_places(fleet),
    )
    write_result(folder, data, to_json(summary), yaml.safe_dump(resolved, sort_keys=False), rows)


def _sensitivity(config: RunConfig, workload: "Workload") -> "list[Sensitivity]":
    from simkit.cluster.merged import merged_run
    from simkit.plan.sweep import load_point, mean_rate
    from simkit.report.data import Sensitivity
    from simkit.workloads.transform import take

    part = take(workload, SENSITIVITY_REQUESTS) if len(workload) > SENSITIVITY_REQUESTS else workload
    found = []
    with progress("other step times", len(STEP_TIME_FACTORS)) as on_progress:
        for factor in STEP_TIME_FACTORS:
            result = merged_run(_served(config, part, factor))
            found.append(Sensitivity(factor, load_point(result, 1.0, mean_rate(part), config.slo)))
            on_progress(len(found))
    return found


def _show(
    title: str, workload: "Workload", summary: dict[str, object], slo: dict[str, float], folder: Path | None
) -> None:
    from simkit.report.fleet import fleet_table
    from simkit.report.table import summary_table

    people.print(f"[bold]{title}[/bold], workload {workload.name}")
    for note in workload.notes:
        people.print(f"note: {note}", markup=False)
    people.print(summary_table(summary, slo))
    people.print(fleet_table(summary))
    if folder is not None:
        people.print(f"report: {folder / 'report.html'}", markup=False)
