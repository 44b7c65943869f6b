"""`simkit plan` without a `plan` section: the highest rate that one replica holds, and what is known of it there."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import yaml

from simkit.cli.config import Config, load_workload, resolve_replica
from simkit.cli.console import emit_json, nothing_yet, people, progress, to_json, waiting_for, whole_or_nothing
from simkit.cli.fleet_plan import drawn, spec_of
from simkit.cli.run import full_summary, step_time_source
from simkit.cli.step_time_error import step_time_error
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.warm_up import warm_up
from simkit.errors import PartialResultError, TargetNotMetError
from simkit.metrics.slo import promise
from simkit.plan.answer import Question, too_long
from simkit.plan.capacity import Capacity, find_capacity, spread
from simkit.plan.observation import REJECTED, miss
from simkit.plan.one_replica import PARTS, OneReplica, look_at
from simkit.plan.space import SearchSpace, kinds
from simkit.plan.sweep import load_point, mean_rate, replay
from simkit.plan.tree import one_replica_tree
from simkit.plan.words import one_replica
from simkit.report.data import ReportData, Sensitivity
from simkit.report.directory import write_atomically, write_result
from simkit.report.plan_page import one_replica_page
from simkit.report.table import load_table, memory_table
from simkit.versions import versions
from simkit.workloads.transform import rate_to
from simkit.workloads.workload import Workload

STEP_TIME_FACTORS = (1.0, 0.9, 1.1)
TYPICAL_PROBES = 7  # a bisection's, for the progress bar
REPLICATIONS = 20


def one_replica_plan(config: Config, folder: Path | None, seeds: int, json: bool) -> None:
    """Search, look at the replica at the rate found, print and write; TargetNotMetError if no rate holds."""
    with nothing_yet():
        spec = resolve_replica(config)
    workloads, answers = _search(config, spec, seeds if config.workload.seeded else 1)
    nominal = answers[1.0][0]
    complete = sum(len(found) for found in answers.values()) == len(workloads) * len(STEP_TIME_FACTORS)
    middle = _rates(answers[1.0])["median"]
    there = _look(config, spec, workloads[0], middle) if complete and middle is not None else None
    tree = {**_tree(config, spec, workloads, answers), "at_rate": None if there is None else one_replica_tree(there)}
    lines = [] if there is None else one_replica(there)
    if folder is not None:
        (folder / "plan.html").unlink(missing_ok=True)  # of an earlier answer, where this one has none
        _write(folder, config, spec, workloads[0], answers, tree)
        if there is not None:
            title = f"{spec.architecture.name} on {spec.device.name}: {workloads[0].name}"
            said = [f"{there.rate_per_s:.4g} requests/s on one replica; above it {_reason(nominal.binding)}.", *lines]
            page = one_replica_page(title, said, tree, promise(config.slo), there)
            write_atomically(folder / "plan.html", page.encode())
    if json:
        emit_json(tree)
    else:
        _show(spec, workloads[0], answers, lines, folder)
    if not complete:
        raise PartialResultError("interrupted; fewer workloads or step times than asked, as the answer says")
    if nominal.rate_per_s is None:
        raise TargetNotMetError(_infeasible(nominal, spec, workloads[0], config.slo))


def _look(config: Config, spec: ReplicaSpec, workload: Workload, rate_per_s: float) -> OneReplica:
    """Everything about the replica at that rate that a fleet's plan says of its replicas."""
    question = Question(workload, rate_per_s, promise(config.slo), spec_of=partial(spec_of, config=config))
    kind = kinds(SearchSpace(), config.deployment)[0]
    draw = partial(drawn, config=config) if config.workload.seeded else None
    with whole_or_nothing(), progress("parts of the answer", PARTS) as on_progress:
        return look_at(question, kind, step_time_error(spec, config, None), REPLICATIONS, draw, on_progress)


def _search(config: Config, spec: ReplicaSpec, seeds: int) -> tuple[list[Workload], dict[float, list[Capacity]]]:
    """The workloads drawn, and per step-time factor the answer for each of them."""
    with nothing_yet():
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


def _rates(answers: Sequence[Capacity]) -> dict[str, float | None]:
    """Median, lowest and highest of the rates found; None where some workload has none."""
    rates = [answer.rate_per_s for answer in answers if answer.rate_per_s is not None]
    if len(rates) < len(answers):
        return {"median": None, "lowest": None, "highest": max(rates, default=None)}
    return dict(zip(("median", "lowest", "highest"), spread(rates), strict=True))


def _tree(
    config: Config,
    spec: ReplicaSpec,
    workloads: Sequence[Workload],
    answers: dict[float, list[Capacity]],
) -> dict[str, object]:
    """The answer as JSON."""
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
    config: Config,
    spec: ReplicaSpec,
    workload: Workload,
    answers: dict[float, list[Capacity]],
    tree: dict[str, object],
) -> None:
    """plan.json, and the result directory of a run at the rate found (or at the lowest tried)."""
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
    spec: ReplicaSpec,
    workload: Workload,
    answers: dict[float, list[Capacity]],
    lines: Sequence[str],
    folder: Path | None,
) -> None:
    """The answer for people."""
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
        for line in lines:
            people.print(line, markup=False)
    people.print(f"step times: {spec.provenance}, {spec.provenance_note}", markup=False, style="yellow")
    if folder is not None:
        page = f"{folder / 'plan.html'}; " if lines else ""
        shown = page + ("a run at the lowest rate tried: " if chosen is None else "a run at that rate: ")
        people.print(f"report: {shown}{folder / 'report.html'}", markup=False)


def _reason(missed: str) -> str:
    return "the queue keeps growing" if missed == "saturated" else miss(missed)


def _infeasible(answer: Capacity, spec: ReplicaSpec, workload: Workload, slo: dict[str, float]) -> str:
    """What binds at the lowest rate tried, by how much, and what would be feasible."""
    if answer.binding == REJECTED:
        longest = too_long(workload, spec.limits.max_model_len, spec.architecture.max_context_tokens)
        return f"no rate keeps the promise to all: {longest}"
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
