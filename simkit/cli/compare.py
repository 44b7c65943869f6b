"""`simkit compare`: deployments side by side on the same traffic."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simkit.cli import options
from simkit.cli.console import emit_json, nothing_yet, people, progress, to_json, waiting_for, whole_or_nothing
from simkit.errors import InputError

if TYPE_CHECKING:
    from simkit.cli.compare_config import CompareConfig
    from simkit.plan.paired import Comparison, Contender
    from simkit.workloads.workload import Workload


def compare(
    configs: Annotated[
        list[Path], typer.Argument(help="Two or more YAML files; the first is what others are held to.")
    ],
    slo: options.Slo = None,
    requests: options.Requests = None,
    rate: options.Rate = None,
    seed: options.Seed = None,
    replications: Annotated[int, typer.Option(min=2, max=1000, help="Pairs behind each interval.")] = 20,
    settings: options.Set = None,
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """Replay the same traffic on each deployment: every difference with its interval, and which is cheaper."""
    with nothing_yet():
        from simkit.cli.compare_config import CompareConfig
        from simkit.cli.config import read_config_as
        from simkit.engine.warm_up import warm_up
        from simkit.metrics.slo import promise
        from simkit.plan.paired import compare as compare_contenders
        from simkit.report.directory import prepare

        if len(configs) < 2:
            raise InputError("compare: one configuration has nothing to be compared with; give two or more")
        shared = options.overrides(
            None, None, None, None, None, None, None, None, None, requests, rate,
            False, False, False, None, slo, seed, settings,
        )  # fmt: skip
        resolved = [read_config_as(CompareConfig, path, shared) for path in configs]
        promised = promise(resolved[0].slo)
        if any(promise(other.slo) != promised for other in resolved):
            raise InputError("slo: the configurations promise different things; give one --slo for all")
        if out is not None:
            prepare(out)
        with waiting_for("compiling the engine, which is kept for later runs"):
            for discipline in sorted({one.deployment.engine.discipline for one in resolved}):
                warm_up(discipline)
        contenders = [_contender(one, name) for one, name in zip(resolved, _names(configs), strict=True)]
    with whole_or_nothing(), progress("replications", replications) as on_replication:
        found = compare_contenders(contenders, promised, replications, on_replication)
    _present(found, resolved, out, json)


def _names(paths: list[Path]) -> list[str]:
    """The files' names without suffix; with a number where that is not enough."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem} {i + 1}" for i, stem in enumerate(stems)]


def _contender(config: "CompareConfig", name: str) -> "Contender":
    from simkit.cli.config import load_workload, resolve_replica
    from simkit.cli.step_time_error import step_time_error
    from simkit.plan.paired import Contender
    from simkit.plan.sweep import own_rate

    spec = resolve_replica(config)
    workload = load_workload(config.workload, config.seed)
    price = spec.device.usd_per_hour.value if config.usd_per_hour is None else config.usd_per_hour
    return Contender(
        name=name,
        spec=spec,
        replicas=config.replicas,
        gpus=config.deployment.layout.gpus,
        usd_per_gpu_hour=price,
        draw=partial(_drawn, config=config, workload=workload),
        rate_per_s=own_rate(workload),
        error=step_time_error(spec, config, config.step_time_spread),
        recorded=not config.workload.seeded,
    )


def _drawn(number: int, config: "CompareConfig", workload: "Workload") -> "Workload":
    """The traffic of one replication: another seed, or a bootstrap of a trace; the first is the workload itself."""
    from simkit.cli.config import load_workload
    from simkit.plan.traffic import resampled

    if number == 0:
        return workload
    return (
        load_workload(config.workload, config.seed + number) if config.workload.seeded else resampled(workload, number)
    )


def _present(found: "Comparison", configs: "list[CompareConfig]", folder: Path | None, json: bool) -> None:
    from simkit.report.comparison_page import paired_page, paired_tables, paired_words
    from simkit.report.directory import write_atomically
    from simkit.versions import versions

    lines = paired_words(found)
    tree = {
        "verdict": lines,
        **asdict(found),
        "configs": [config.model_dump(mode="json") for config in configs],
        "versions": versions(),
    }
    if folder is not None:
        write_atomically(folder / "compare.json", (to_json(tree) + "\n").encode())
        write_atomically(folder / "compare.html", paired_page(found, lines, tree).encode())
    if json:
        emit_json(tree)
        return
    for table in paired_tables(found):
        people.print(table)
    for line in lines:
        people.print(line, markup=False)
    if folder is not None:
        people.print(f"report: {folder / 'compare.html'}", markup=False)
