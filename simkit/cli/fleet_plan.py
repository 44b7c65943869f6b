"""`simkit plan` with a `plan` section: the cheapest deployment for a demand, and everything known about it."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from simkit.cli.config import Config, load_workload, resolve_replica
from simkit.cli.console import emit_json, nothing_yet, people, progress, to_json, waiting_for
from simkit.cli.step_time_error import step_time_error
from simkit.cluster.settings import Cluster
from simkit.engine.deployment import Deployment, ReplicaSpec
from simkit.engine.warm_up import warm_up
from simkit.errors import InputError, PartialResultError, TargetNotMetError
from simkit.metrics.slo import promise
from simkit.plan.answer import Question, kind_tree
from simkit.plan.changes import infeasible
from simkit.plan.decision import PARTS, Decision, decide
from simkit.plan.parallel import Workers
from simkit.plan.scenario import scenarios
from simkit.plan.search import SearchResult, pareto, search
from simkit.plan.settings import PlanSettings
from simkit.plan.space import Kind, kinds
from simkit.plan.study import Study, question_key
from simkit.plan.sure import surely, unsure
from simkit.plan.sweep import mean_rate
from simkit.plan.tree import decision_tree, infeasible_tree
from simkit.plan.unit import Unit, warm_up_group, work_out
from simkit.plan.words import no_way, verdict
from simkit.report.directory import write_atomically
from simkit.report.plan_page import plan_page
from simkit.versions import versions
from simkit.workloads.workload import Workload

# of a cluster's section, what stands before replicas whose number is to be found
DOOR = {"router", "admission", "clients", "lost_jobs", "faults", "startup", "processes"}


class PlanConfig(Config):
    """A configuration that may say what can be deployed and how much is asked."""

    plan: PlanSettings | None = Field(default=None, description="search space, demand, prices, robustness")
    cluster: Cluster | None = Field(
        default=None, description="the door before the fleet that is found: router, clients"
    )

    @model_validator(mode="before")
    @classmethod
    def _first_of_the_search(cls, tree: object) -> object:
        """Where a search lists models and devices, the deployment need not name one."""
        if not isinstance(tree, dict):
            return tree
        plan = tree.get("plan")
        space = plan.get("search") if isinstance(plan, dict) else None
        deployment = tree.get("deployment", {})
        if not isinstance(space, dict) or not isinstance(deployment, dict):
            return tree
        filled = dict(deployment)
        for name, listed in (("model", space.get("models")), ("device", space.get("devices"))):
            if name not in filled and isinstance(listed, list) and listed:
                first = listed[0]
                filled[name] = first.get("device") if isinstance(first, dict) else first
        return {**tree, "deployment": filled}

    @model_validator(mode="after")
    def _cluster_is_a_door(self) -> Self:
        """Of a cluster's section only what stands before replicas whose number is to be found."""
        if self.cluster is None:
            return self
        if self.plan is None:
            raise ValueError("cluster: goes with a fleet; say how much it must serve, for instance --demand 20")
        wrong = sorted(self.cluster.model_fields_set - DOOR)
        if wrong:
            raise ValueError(
                f"cluster.{wrong[0]}: a plan finds the replicas itself and takes only {', '.join(sorted(DOOR))} of a "
                "cluster; leave it out, and try the rest on the fleet found with simkit run"
            )
        if "router" in self.plan.model_fields_set:
            raise ValueError("plan.router: the cluster section has the router; leave one of them out")
        if any(self.plan.search.disaggregated):
            raise ValueError("cluster: disaggregated groups have a gateway of their own; leave one of them out")
        return self

    @model_validator(mode="after")
    def _growth_where_asked(self) -> Self:
        if self.plan is not None and "growth" in self.plan.robust and self.plan.demand.growth is None:
            raise ValueError("plan.robust: growth needs plan.demand.growth, for instance {per_month: 0.08, months: 12}")
        return self


def spec_of(kind: Kind, config: Config) -> Unit:
    """A kind worked out, with the configuration's profile if it names one."""

    def resolved(deployment: Deployment) -> ReplicaSpec:
        return resolve_replica(config.model_copy(update={"deployment": deployment}))

    return work_out(kind, resolved)


def fleet_plan(config: PlanConfig, folder: Path | None, study: Path | None, workers: Workers, json: bool) -> None:
    """Search, look at the chosen deployment, print and write; TargetNotMetError if nothing holds."""
    settings = config.plan
    assert settings is not None, "asked for with a plan section only"
    with nothing_yet():
        with waiting_for("reading the workload"):
            workload = load_workload(config.workload, config.seed)
        promised = promise(config.slo)
        asked = settings.demand.rate(mean_rate(workload))
        if math.isnan(asked):
            raise InputError(f"plan.demand: workload {workload.name} has no rate of its own; give rate_per_s or users")
        robust = scenarios(settings.robust, settings.stresses, settings.demand.growth)
        door = config.cluster or Cluster(router=settings.router)
        question = Question(workload, asked, promised, robust, partial(spec_of, config=config), door)
        with waiting_for("compiling the engine, which is kept for later runs"):
            warm_up(config.deployment.engine.discipline)
        options = kinds(settings.search, config.deployment)
        group = next((kind for kind in options if kind.apart is not None), None)
        if group is not None:
            with waiting_for("compiling the loop of groups, which is kept for later runs"):
                _warm_up(question, group)
        key = question_key({"config": config.model_dump(mode="json"), "versions": versions()})
        kept = Study(study, key)
    found = _search(options, question, workers, kept, settings.front)
    try:
        lines, tree, decision = _answer(config, settings, question, found, workers)
    except KeyboardInterrupt:
        raise PartialResultError(f"interrupted after the search: {_found(found)}; {_go_on(kept)}") from None
    whole = _tree(config, settings, question, found, lines, tree)
    figure = front_figure_key(config.slo)
    if folder is not None:
        title = f"{workload.name} at {asked:.4g} requests/s"
        page = plan_page(title, lines, whole, promised, decision, found, figure)
        write_atomically(folder / "plan.json", (to_json(whole) + "\n").encode())
        write_atomically(folder / "plan.html", page.encode())
        if decision is not None:
            write_atomically(folder / "deployment.yaml", decision.launch.kubernetes.encode())
        else:
            (folder / "deployment.yaml").unlink(missing_ok=True)  # an earlier plan's, which this one contradicts
    if json:
        emit_json(whole)
    else:
        _show(lines, found, decision, figure, folder)
    if decision is None:
        raise TargetNotMetError(lines[0])


def _warm_up(question: Question, group: Kind) -> None:
    """Compile what groups are replayed by; a kind that cannot run says why in the search."""
    with suppress(InputError):
        warm_up_group(question.spec_of(group), question.workload)


def front_figure_key(slo: dict[str, float]) -> str:
    """The latency of the Pareto front: that of the first target of a percentile."""
    targets = promise(slo).targets
    return targets[0].key if targets else "e2e_p99_s"


def _search(options: list[Kind], question: Question, workers: Workers, study: Study, front: bool) -> SearchResult:
    with progress("kinds of replica", len(options)) as on_progress:
        try:
            return search(options, question, workers, study, front, on_progress)
        except KeyboardInterrupt:
            done = f"interrupted with {len(study.answers)} of {len(options)} kinds answered"
            raise PartialResultError(f"{done}; {_go_on(study)}") from None


def _go_on(study: Study) -> str:
    """How an interrupted plan is taken up."""
    return "with --study FILE the search can go on" if study.path is None else "the same command goes on"


def _found(found: SearchResult) -> str:
    """What a search found, where nothing else can be said of it."""
    if found.chosen is None:
        return "nothing that was allowed holds"
    kind, one = found.chosen
    return f"{one.replicas} x {kind.label} is the cheapest that holds, for {one.usd_per_hour:,.2f} USD/h"


def _answer(
    config: PlanConfig, settings: PlanSettings, question: Question, found: SearchResult, workers: Workers
) -> tuple[list[str], dict[str, object], Decision | None]:
    """(verdict, the same as JSON, the decision; None where nothing holds, or is sure enough)."""
    if found.chosen is None:
        with waiting_for("looking for what would hold"):
            why = infeasible(question, found, config.deployment, settings.search)
        return no_way(why), {"infeasible": infeasible_tree(why)}, None
    kind, one = found.chosen
    assert one.replicas is not None, "what holds has a number"
    replicas = one.replicas
    draw: Callable[[int], Workload] | None = None
    if config.workload.seeded:
        draw = partial(drawn, config=config)
    error_of = partial(step_time_error, config=config, stated=settings.step_time_spread)
    if settings.sure is not None:
        with waiting_for(f"looking for what keeps the promise with probability {settings.sure:g}"):
            surer = surely(question, found, settings, error_of, draw, workers)
        if surer is None:
            with waiting_for("looking for what would"):
                why = unsure(question, found, settings, error_of, draw, workers)
            return no_way(why), {"infeasible": infeasible_tree(why)}, None
        kind, replicas = surer
    error = error_of(question.spec_of(kind))
    with progress("parts of the answer", PARTS) as on_progress:
        decision = decide(question, kind, replicas, settings, error, draw, on_progress, workers)
    lines = verdict(decision, found, question.promise, settings)
    return lines, {"decision": decision_tree(decision)}, decision


def drawn(number: int, config: Config) -> Workload:
    """The workload of a replication, drawn with a seed of its own."""
    return load_workload(config.workload, config.seed + number)


def _tree(
    config: PlanConfig,
    settings: PlanSettings,
    question: Question,
    found: SearchResult,
    lines: list[str],
    answer: Mapping[str, object],
) -> dict[str, object]:
    return {
        "verdict": lines,
        "rate_per_s": question.rate_per_s,
        **answer,
        "search": {
            "kinds": [
                {**kind_tree(kind), **one.model_dump(mode="json")}
                for kind, one in zip(found.kinds, found.answers, strict=True)
            ],
            "best": found.best,
            "front": pareto(found.answers, front_figure_key(config.slo)),
            "front_is_whole": settings.front,
            "counts": found.counts(),
        },
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": versions(),
    }


def _show(lines: list[str], found: SearchResult, decision: Decision | None, figure: str, folder: Path | None) -> None:
    from simkit.report.plan_tables import decision_tables, search_table

    chosen = None if decision is None else (decision.kind.number, decision.replicas)
    people.print(search_table(found, figure, chosen))
    if decision is not None:
        for shown in decision_tables(decision):
            people.print(shown)
        people.print(decision.launch.vllm, markup=False, soft_wrap=True)
        for note in decision.launch.notes:
            people.print(f"# {note}", markup=False)
        people.print()
    for number, line in enumerate(lines):
        people.print(line, markup=False, style="bold" if number == 0 else "")
    if folder is not None:
        people.print(f"report: {folder / 'plan.html'}", markup=False)
