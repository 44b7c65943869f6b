"""Remake every number and figure of docs/validate.md from measured runs: one command, a minute or two.

    python experiments/fidelity/make_results.py RUNS.json [--cpu FOLDER] [--silicon silicon_sample.csv] [--fit]

`--fit` first fits the engine's constants again (fit_engine.py, some minutes); `--cpu` is a folder with run0.jsonl.gz
and run1.jsonl.gz, two step logs of one engine; `--silicon` is AIConfigurator's sample. Writes results/results.md,
results/results.json, results/page.html and a scatter plot a metric into this folder.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from interval_coverage import coverage, held_of

from simkit.calibrate.step_fit import fit_steps
from simkit.calibrate.step_log import read_step_log
from simkit.fidelity.comparison import ComparedRun, ErrorSummary, Validation, overall
from simkit.fidelity.knee import knee_per_s
from simkit.fidelity.measured_runs import MeasuredRun, read_measured_runs
from simkit.fidelity.page import DRAWN, render, scatter
from simkit.fidelity.predict import Timing
from simkit.fidelity.recorded import compare_recorded, profile_timing
from simkit.fidelity.table import heading
from simkit.fidelity.validate import measured_in_flight, validate
from simkit.report.palette import FAINT, GRID, INK, PARTS, css_variables

HERE = Path(__file__).parent
OUT = HERE / "results"
ROWS = ("itl_mean", "e2e_mean", "ttft_mean", "ttft_p90", "ttft_p99", "e2e_p99")


def row(name: str, errors: dict[str, dict[str, float]]) -> str:
    """A line of the table: median absolute (worst) error of each metric."""
    cells = [f"{errors[m]['median_abs_pct']:.1f} ({errors[m]['worst_pct']:+.0f})" if m in errors else "" for m in ROWS]
    return f"| {name} | {' | '.join(cells)} |"


def plain(summaries: dict[str, ErrorSummary]) -> dict[str, dict[str, float]]:
    """Summaries as JSON has them."""
    return {metric: {k: v for k, v in vars(s).items() if v is not None} for metric, s in summaries.items()}


def knees(runs: list[MeasuredRun]) -> list[dict[str, object]]:
    """Where each stage stands: offered rate over the most that the replica completes."""
    found = []
    for run in runs:
        knee = knee_per_s(run)
        for number, (rate, _) in enumerate(run.workload_spec.stages):
            stage = f"stage{number}" if f"stage{number}" in run.measured else "whole"
            latency = run.measured[stage]
            in_flight = measured_in_flight(run, f"stage{number}") or rate * (latency.e2e_mean_ms or np.nan) / 1e3
            found.append(
                {
                    "id": run.id,
                    "stage": number,
                    "rate_per_s": rate,
                    "knee_per_s": round(knee, 2),
                    "load": round(rate / knee, 3),
                    "in_flight": round(in_flight, 1),
                    "max_num_seqs": run.max_num_seqs or 0,
                    "clients": run.workload_spec.users,
                }
            )
    return found


def cpu(folder: Path, fitted: str, other: str) -> dict[str, object]:
    """Steps fitted on one run, another predicted: errors in %."""
    profile = fit_steps([folder / f"{fitted}.jsonl.gz"], created="2026-01-01")
    run = compare_recorded(read_step_log(folder / f"{other}.jsonl.gz"), profile_timing(profile))
    return {metric: run.whole.error_pct(metric) for metric in run.whole.predicted} | {"paired": run.notes[0]}


def worst(runs: tuple[ComparedRun, ...], metric: str, count: int = 6) -> list[str]:
    """The runs farthest off."""
    order = sorted(runs, key=lambda run: -abs(run.whole.error_pct(metric) or 0.0))
    return [f"{run.id} {run.whole.error_pct(metric):+.1f} %" for run in order[:count]]


def alone(svg: str) -> str:
    """A page's figure as a file of its own: with the colours that the page would give it, on white."""
    colours = f"--ink: {INK}; --faint: {FAINT}; --grid: {GRID}; {css_variables(PARTS)}"
    end = svg.index(">") + 1
    opening = svg[:end].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    style = f"<style>svg {{ {colours} background: white; }}</style>"
    return opening + style + svg[end:]


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--cpu", type=Path)
    parser.add_argument("--silicon", type=Path)
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    if arguments.fit:
        subprocess.run([sys.executable, HERE / "fit_engine.py", arguments.runs, OUT], check=True)
    runs = read_measured_runs(arguments.runs)
    timings = {
        "calibrated, as shipped": Timing(),
        "uncalibrated roofline": Timing("uncalibrated"),
        "steps x 0.9": Timing(factor=0.9),
        "steps x 1.1": Timing(factor=1.1),
    }
    found: dict[str, Validation] = {name: validate(runs, timing) for name, timing in timings.items()}
    fit = json.loads((OUT / "fit.json").read_text())
    errors = {
        "leave one model out": fit["leave_one_model_out"],
        "leave one device out": fit["leave_one_device_out"],
        **{name: plain(overall(validation.runs)) for name, validation in found.items()},
    }
    first = found["calibrated, as shipped"]
    held = coverage(held_of(arguments.runs, OUT / "fit.json"))
    tree: dict[str, object] = {
        "errors": errors,
        "interval_coverage": held,
        "knees": knees(runs),
        "constants": fit["constants"],
    }
    head = f"| median abs % (worst %) | {' | '.join(heading(metric) for metric in ROWS)} |"
    lines = [head, "|" + "---|" * (len(ROWS) + 1), *(row(name, table) for name, table in errors.items()), ""]
    lines += ["Held by the 90 % interval, leave one model out:", ""]
    lines += [f"- {heading(metric)}: {share:.0%}" for metric, share in held.items()]
    lines += [
        "",
        *(f"Worst {heading(m)}: " + "; ".join(worst(first.runs, m)) for m in ("itl_mean", "ttft_mean", "ttft_p99")),
    ]
    if arguments.cpu is not None:
        for fitted, other in (("run0", "run1"), ("run1", "run0")):
            tree[f"cpu_{fitted}_{other}"] = cpu(arguments.cpu, fitted, other)
            lines += ["", f"CPU, {fitted} -> {other}: {tree[f'cpu_{fitted}_{other}']}"]
    lines += ["", "| run | stage | rate | knee | load | in flight |", "|---|---|---|---|---|---|"]
    for k in knees(runs):
        lines.append(
            f"| {k['id']} | {k['stage']} | {k['rate_per_s']} | {k['knee_per_s']} | {k['load']} | {k['in_flight']} |"
        )
    (OUT / "results.md").write_text("\n".join(lines) + "\n")
    (OUT / "results.json").write_text(json.dumps(tree, indent=1) + "\n")
    (OUT / "page.html").write_text(render(first), encoding="utf-8")
    points = [(run.hardware, stage) for run in first.runs for stage in run.stages if stage.measured]
    for metric in DRAWN:
        svg = scatter(metric, [(name, stage) for name, stage in points if stage.stage != "whole"])
        if svg is not None:
            (OUT / f"scatter-{metric}.svg").write_text(alone(svg) + "\n", encoding="utf-8")
    if arguments.silicon is not None:
        subprocess.run([sys.executable, HERE / "silicon.py", arguments.silicon, OUT / "silicon.json"], check=True)
    print((OUT / "results.md").read_text())


if __name__ == "__main__":
    main()
