"""What `simkit testbed` does: calibrate, serve for real, predict the same arrivals, write both."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from simkit.cli.config import CONFIGURATION, Config, load_workload, read_config_as
from simkit.cli.console import answers, emit_json, people, progress, to_json, waiting_for
from simkit.errors import InputError, PartialResultError
from simkit.testbed.settings import TestbedSettings
from simkit.yaml_file import read_mapping

if TYPE_CHECKING:
    from simkit.metrics.comparison import Comparison
    from simkit.models.steptables import StepTables
    from simkit.testbed.bench import Bench
    from simkit.testbed.knotted_step import F64, KnottedStep
    from simkit.testbed.measured import MeasuredRun
    from simkit.testbed.replay import Replay
    from simkit.workloads.workload import Workload

HERE = "this machine"


class TestbedConfig(Config):
    """What `simkit testbed` takes: a configuration of `run` with a section of its own."""

    __test__ = False

    testbed: TestbedSettings = Field(default_factory=TestbedSettings)


@dataclass(frozen=True)
class _Prediction:
    """Step times, and what to say of where they come from."""

    tables: "StepTables"
    source: str
    factors: "tuple[F64, ...]" = ()  # how steps scattered around the tables, where that was seen
    model: "KnottedStep | None" = None  # which the tables were made of, where that is so


def serve(config: TestbedConfig, source: str, logs: list[Path], folder: Path | None, scratch: Path, json: bool) -> None:
    """Calibrate, serve, predict, print, write."""
    from simkit.engine.warm_up import warm_up
    from simkit.testbed.bench import set_up

    workload = load_workload(config.workload, config.seed)
    with waiting_for("building the decoder"):
        bench = set_up(config.deployment.model, config.deployment.engine, config.testbed)
    with waiting_for("compiling the engine, which is kept for later runs"):
        warm_up(config.deployment.engine.discipline)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        prediction = _predict(config, source, logs, bench, workload, folder or scratch)
    except KeyboardInterrupt:
        raise PartialResultError("interrupted while calibrating; nothing was served") from None
    if not json:
        arrivals_s = float(workload.arrival_us[-1]) / 1e6 if len(workload) else 0.0
        people.print(f"serving {len(workload):,} requests, which arrive over {arrivals_s:.0f} s", markup=False)
    with progress("requests", len(workload)) as on_progress:
        run = bench.serve(workload, on_progress=on_progress)
    log, lost = _kept(run, (folder or scratch) / "measured.jsonl.gz")
    if prediction is None:
        _finish_unpredicted(run, log, folder, json)
    else:
        _finish(config, run, prediction, log, folder, json)
    if run.failure:
        kept = f"; {len(run.steps)} steps are kept in {log}, which says that it is partial" if folder else ""
        raise PartialResultError(f"{run.failure}{kept}")
    if lost is not None:
        raise lost


def _kept(run: "MeasuredRun", wanted: Path) -> tuple[Path, InputError | None]:
    """Where the log is now, and why not where it was wanted: what was measured for minutes outlives a full disk."""
    from simkit.testbed.measured_run import write_measured_run

    try:
        write_measured_run(run, wanted)
    except InputError as error:
        other = Path(tempfile.mkdtemp(prefix="simkit-testbed-")) / wanted.name
        write_measured_run(run, other)
        people.print(f"{error}; the log is in {other} instead", markup=False, style="yellow", soft_wrap=True)
        return other, error
    return wanted, None


def _predict(
    config: TestbedConfig, source: str, logs: list[Path], bench: "Bench", workload: "Workload", folder: Path
) -> _Prediction | None:
    """Step times by the chosen source; what was fitted here goes into profile.json and step_model.json."""
    from simkit.calibrate.profile import write_profile
    from simkit.testbed.calibration import calibrate, fitted

    if source == "none":
        return None
    if source == "profile":
        return _by_profile(config, bench)
    if source == "calibration":
        with waiting_for("calibrating"):
            logs = calibrate(bench, workload, folder, seed=config.seed)
    found = fitted(logs, bench)
    write_profile(found.profile, folder / "profile.json")
    (folder / "step_model.json").write_text(to_json(found.model.as_json()) + "\n", encoding="utf-8")
    said = "calibrated just now with the same executor" if source == "calibration" else "a fit of earlier logs"
    steps = sum(part.steps for part in found.profile.sources)
    return _Prediction(found.tables, f"{said}, {steps:,} steps, scattered as these were", found.factors, found.model)


def _by_profile(config: TestbedConfig, bench: "Bench") -> _Prediction:
    """Step times of a stored profile: a directory of operators, or the file of a whole-step model."""
    from simkit.calibrate.operator_profile import profile_folder, read_operator_profile
    from simkit.calibrate.profile import read_profile
    from simkit.models.catalog import load_model
    from simkit.testbed.bench import cut
    from simkit.testbed.calibration import profile_tables
    from simkit.testbed.stored_profile import stored_tables

    assert config.profile is not None
    folder = profile_folder(config.profile)
    if folder is None:
        profile = read_profile(config.profile)
        return _Prediction(profile_tables(profile, bench), profile.provenance)
    operators = read_operator_profile(folder)
    arch = cut(load_model(config.deployment.model), config.testbed.layers)
    return _Prediction(stored_tables(operators, folder, arch, bench), operators.provenance)


def _finish(
    config: TestbedConfig,
    run: "MeasuredRun",
    prediction: _Prediction,
    log: Path,
    folder: Path | None,
    json: bool,
) -> None:
    """Compare with the prediction, print and write it."""
    from simkit.metrics.comparison import compare_runs
    from simkit.testbed.knotted_step import with_drafts
    from simkit.testbed.replay import predicted, replay
    from simkit.testbed.spread import predicted_with_spread

    as_told = run if prediction.model is None else with_drafts(prediction.model, run)
    again = replay(as_told, prediction.tables)
    assert again.steps is not None
    if prediction.factors:
        told = predicted_with_spread(as_told, prediction.tables, prediction.factors, config.seed)
    else:
        told = predicted(as_told, prediction.tables)
    comparison = compare_runs(run.result, told, again.steps)
    tree = _tree(config, run, prediction, again, comparison)
    if json:
        emit_json(tree)
    else:
        _show(run, prediction, again, comparison)
    if folder is None:
        return
    _write(folder, run, comparison, tree, _facts(run, prediction, again))
    if not json:
        people.print(f"log: {log}\nreport: {folder / 'report.html'}", markup=False)


def _finish_unpredicted(run: "MeasuredRun", log: Path, folder: Path | None, json: bool) -> None:
    """Without step times there is only what was measured."""
    from simkit.metrics.summary import summarize
    from simkit.report.table import summary_table

    summary = {**summarize(run.result), "failure": run.failure}
    if json:
        emit_json(summary)
        return
    people.print(summary_table(summary))
    if folder is not None:
        people.print(f"log: {log}", markup=False)


def _tree(
    config: TestbedConfig, run: "MeasuredRun", prediction: _Prediction, again: "Replay", comparison: "Comparison"
) -> dict[str, object]:
    from simkit.metrics.comparison import comparison_tree
    from simkit.metrics.summary import summarize
    from simkit.versions import versions

    return {
        **comparison_tree(comparison),
        "failure": run.failure,
        "replay": {"steps": len(run.steps), "identical": again.identical, "difference": again.difference},
        "step_time": prediction.source,
        "identity": {**run.identity._asdict(), "engine": run.identity.engine},
        "measured": summarize(run.result),
        "predicted": summarize(comparison.predicted),
        "limits": run.limits._asdict(),
        "blocks": run.num_blocks,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
    }


def _facts(run: "MeasuredRun", prediction: _Prediction, again: "Replay") -> list[tuple[str, str]]:
    """What the numbers rest on, in lines."""
    model = run.identity.model
    same = f"{again.identical:,} of {len(run.steps):,} steps planned alike"
    return [
        ("Device", run.identity.device),
        ("Executor", run.identity.engine),
        ("Scheduling", "asynchronous, two steps under way" if run.asynchronous else "one step at a time"),
        ("Decoder", ", ".join(f"{key} {value}" for key, value in model.items())),
        ("Workload", f"{run.workload.name}, {len(run.workload):,} requests{_rejected(run)}"),
        ("Step times", prediction.source),
        ("Replay of the log", same + (f"; {again.difference}" if again.difference else "")),
    ]


def _rejected(run: "MeasuredRun") -> str:
    """How many requests could never run, if any."""
    from simkit.metrics.result import Status

    count = int((run.result.requests.status == Status.REJECTED).sum())
    return f", {count:,} of them rejected: longer than max_model_len={run.limits.max_model_len}" if count else ""


def _show(run: "MeasuredRun", prediction: _Prediction, again: "Replay", comparison: "Comparison") -> None:
    from simkit.report.side_by_side import comparison_tables

    for name, value in _facts(run, prediction, again):
        people.print(f"{name}: {value}", markup=False)
    if run.failure:
        people.print(f"partial: {run.failure}", style="yellow", markup=False)
    for table in comparison_tables(comparison):
        answers.print(table)


def _write(
    folder: Path, run: "MeasuredRun", comparison: "Comparison", tree: dict[str, object], facts: list[tuple[str, str]]
) -> None:
    from simkit.report.directory import write_atomically
    from simkit.report.side_by_side import comparison_page

    title = f"{run.workload.name} on {run.identity.device}: measured beside predicted"
    write_atomically(folder / "comparison.json", (to_json(tree) + "\n").encode())
    page = comparison_page(comparison, title, facts, run.failure)
    write_atomically(folder / "report.html", page.encode())


def read_testbed_config(path: Path | None, given: list[tuple[str, object]]) -> TestbedConfig:
    """The configuration; what `run` needs to know of the device and the testbed does not is filled in."""
    tree = {} if path is None else read_mapping(path, CONFIGURATION)
    below = tree.get("deployment")
    if not (isinstance(below, dict) and "device" in below):
        given = [*given, ("deployment.device", HERE)]
    config = read_config_as(TestbedConfig, path, given)
    deployment = config.deployment
    if deployment.layout.gpus != 1:
        raise InputError(f"deployment.layout: {deployment.layout.gpus} GPUs; the testbed runs one device, leave it out")
    for name in ("weights", "kv"):
        if name in deployment.model_fields_set:
            raise InputError(f"deployment.{name}: the testbed computes in testbed.dtype; leave it out, or set that")
    if deployment.device != HERE:
        people.print(f"deployment.device={deployment.device} is not used: steps run on {HERE}", markup=False)
    return config


def step_time_source(config: TestbedConfig, logs: list[Path], calibrate: bool | None) -> str:
    """Where step times come from: profile, logs, calibration or none."""
    named = [
        name for name, given in (("--profile", config.profile), ("--steps", logs), ("--calibrate", calibrate)) if given
    ]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)}: each says where step times come from; give one of them")
    if config.profile is not None:
        return "profile"
    if logs:
        return "logs"
    return "none" if calibrate is False else "calibration"
