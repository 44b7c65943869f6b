"""How well is a whole decoder on this GPU predicted? Calibrated and measured in one run of under nine minutes.

    python experiments/gpu/testbed.py --out DIR     OUT in the environment stands for --out
    python experiments/gpu/testbed.py --async-scheduling    steps planned while others run, vLLM's default
    python experiments/gpu/testbed.py --plan        what would be done; needs no GPU

Llama-3.1-8B's shape, full depth, bf16, random weights, our kernels, CUDA graphs at vLLM's capture sizes for decodes.
First a decoder of two layers in float32 says whether answers are the same in a batch, in chunks, padded, preempted and
with asynchronous scheduling. Then bursts of requests of their own calibrate a step-time model; the knee is searched for
on the virtual clock with it; then requests arrive for real at 0.5, 0.8 and 0.95 of the knee, and each run is printed
beside its prediction. Comes back: testbed.md, testbed.json, a page a load, logs.tar (simkit-measured-run-1), written
anew after each part, so that a run that is cut short leaves what it has. Exit code 1 where answers differ. A process of
its own does it: where a part takes far longer than it should, it is ended, and the report says in what (`watched.py`).
"""

import argparse
import json
import os
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from machine import describe, require_device
from stages import Stages, last_line
from watched import watch

from simkit.calibrate.step_fit import fit_steps, profile_rows
from simkit.engine.settings import EngineSettings
from simkit.engine.simulate import simulate
from simkit.engine.state import Limits
from simkit.engine.warm_up import warm_up
from simkit.errors import InputError
from simkit.metrics.comparison import Comparison, compare_runs
from simkit.metrics.saturation import saturation
from simkit.metrics.summary import summarize
from simkit.models.steptables import StepTables
from simkit.report.side_by_side import comparison_page
from simkit.testbed.bench import Bench, set_up
from simkit.testbed.calibration import calibrate, profile_tables
from simkit.testbed.knotted_step import factors_of, fit_knotted, knotted_tables
from simkit.testbed.measured import MeasuredRun
from simkit.testbed.measured_run import write_measured_run
from simkit.testbed.replay import predicted, replay
from simkit.testbed.settings import TestbedSettings
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

MODEL = "llama-3.1-8b"
LOADS = (0.5, 0.8, 0.95)
BURSTS = (1, 4, 12, 32, 64, 128, 192, 256)
BUDGET_S = 500.0
AFTER_S = 20.0  # of each load: until the last request is over, replay, page
LEAST_S = 20.0  # of arrivals, or a load says nothing
# what each part takes at most, some three times what it should; a load beside its arrivals
LIMITS_S = {"answers": 120.0, "decoder": 180.0, "ready": 300.0, "offline": 90.0, "load": 90.0}
AIMS = {("e2e", "p50"): 0.05, ("itl", "p50"): 0.05, ("ttft", "p50"): 0.08,
        ("e2e", "p99"): 0.15, ("itl", "p99"): 0.15, ("ttft", "p99"): 0.15}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    model: str = MODEL
    layers: int | None = None
    dtype: str = "bfloat16"
    max_model_len: int = 4096
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    async_scheduling: bool = False
    bursts: tuple[int, ...] = BURSTS
    rounds: int = 2  # of the bursts
    run_s: float = 75.0  # of arrivals a load, at most
    most_requests: int = 3000
    prompt_median: int = 512
    output_median: int = 128


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "testbed-result")))
    parser.add_argument("--async-scheduling", action="store_true")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    plan = Plan(async_scheduling=asked.async_scheduling)
    if asked.plan:
        print("\n".join(plan_lines(plan)))
        return 0
    require_device()
    log = asked.out / "stages.jsonl"
    if not asked.watched:
        # once: what is calibrated is lost with its process
        code = watch([sys.executable, __file__, *sys.argv[1:], "--watched"], log, most_cuts=0)
        note_cut(asked.out, log)
        return code
    asked.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, object] = {"machine": describe(), "plan": vars(plan)}
    with tempfile.TemporaryDirectory() as logs:
        try:
            same = measure(plan, found, asked.out, Path(logs), Stages(log))
        except BaseException as error:  # whatever ends the run: what was measured until then is wanted
            found["ended"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            raise
        finally:
            print(keep(found, asked.out, Path(logs)))
    return 0 if same else 1


def measure(plan: Plan, found: dict[str, object], out: Path, logs: Path, stages: Stages) -> bool:
    """Everything on the device, into `found`, which is written after every part; whether answers are the same."""
    began = time.perf_counter()

    def done(what: str) -> None:
        stages.over(what)
        note(found, what, began)
        keep(found, out, logs)

    stages.under_way("answers", LIMITS_S["answers"])
    try:
        same = answers_agree(found)
    except Exception as error:  # the loads are worth having all the same
        found["requests with the same answer"], same = told(error), False
    done("answers")
    stages.under_way("decoder", LIMITS_S["decoder"])
    bench = build(plan)
    warm_up()
    found["identity"] = bench.executor.identity._asdict()
    found["kv_blocks"] = bench.executor.num_blocks
    done("decoder")
    stages.under_way("ready", LIMITS_S["ready"])
    tables = calibrated(bench, plan, logs, found)
    done("ready")
    knee = knee_per_s(bench.limits, bench.executor.num_blocks, tables["knotted"], plan)
    found["knee_requests_per_s"] = knee
    stages.under_way("offline", LIMITS_S["offline"])
    try:
        found["offline"] = offline(bench, plan)
    except Exception as error:
        found["offline"] = told(error)
    done("offline")
    for number, load in enumerate(LOADS):
        left_s = BUDGET_S - (time.perf_counter() - began)
        run_s = share_s(left_s, len(LOADS) - number, plan.run_s)
        if run_s is None:
            found[f"load {load}"] = f"left out: {left_s:.0f} s were left"
            continue
        stages.under_way(f"load {load}", run_s + LIMITS_S["load"])
        try:
            found[f"load {load}"] = at_load(bench, replace(plan, run_s=run_s), load, knee, tables, out, logs)
        except Exception as error:  # its log is kept, and the next load may go better
            found[f"load {load}"] = told(error)
        done(f"load {load}")
    return same


def told(error: Exception) -> str:
    """What ended a part of the run, on one line."""
    return (
        str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    )


def share_s(left_s: float, loads: int, most_s: float) -> float | None:
    """Seconds of arrivals for the next of so many loads, the others having as much; None where it is too little."""
    each = min(most_s, left_s / loads - AFTER_S)
    return each if each >= LEAST_S else None


def keep(found: dict[str, object], out: Path, logs: Path) -> str:
    """Write what there is by now; returns the report."""
    text = write_report(found, out)
    with tarfile.open(out / "logs.tar", "w") as archive:
        for path in sorted(logs.glob("*.jsonl.gz")):
            archive.add(path, path.name)
    return text


def write_report(found: dict[str, object], out: Path) -> str:
    """testbed.json and testbed.md; returns the latter."""
    (out / "testbed.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    text = "\n".join(report_lines(found)) + "\n"
    (out / "testbed.md").write_text(text, encoding="utf-8")
    return text


def note_cut(out: Path, log: Path) -> None:
    """Where the run's process was ended: say in what in the report, which has all that was done before."""
    last, record = last_line(log), out / "testbed.json"
    if last is None or "cut" not in last or not record.exists():
        return
    found = json.loads(record.read_text(encoding="utf-8")) | {"ended": f"{last['stage']}: {last['cut']}"}
    print(write_report(found, out))


def plan_lines(plan: Plan) -> list[str]:
    """What a run does, with its share of the time."""
    return [
        f"{plan.model}, {plan.dtype}, {plan.layers or 'all'} layers, context {plan.max_model_len}, "
        f"steps of {plan.max_num_batched_tokens} tokens, {plan.max_num_seqs} requests, "
        f"asynchronous scheduling {'on' if plan.async_scheduling else 'off'}",
        "check: answers batched, chunked, padded, preempted and asynchronous, two layers in float32 (20 s)",
        f"calibrate: bursts of {', '.join(map(str, plan.bursts))} requests, once for nothing, then {plan.rounds} times "
        "(90 to 140 s)",
        "knee: bisection on the virtual clock (5 s)",
        f"offline: {2 * plan.max_num_seqs} requests at once, tokens a second (20 s)",
        *(f"load {load}: arrivals for at most {plan.run_s:.0f} s, then until all are done" for load in LOADS),
    ]


def build(plan: Plan) -> Bench:
    """The decoder on the device."""
    engine = EngineSettings(
        max_num_batched_tokens=plan.max_num_batched_tokens,
        max_num_seqs=plan.max_num_seqs,
        max_model_len=plan.max_model_len,
        enable_prefix_caching=False,
        async_scheduling=plan.async_scheduling,
    )
    return set_up(plan.model, engine, TestbedSettings(device="cuda", layers=plan.layers, dtype=plan.dtype))


def requests(plan: Plan, count: int, rate_per_s: float, seed: int) -> Workload:
    """Poisson arrivals, log-normal lengths; the lengths are the same for all loads of a seed."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(0.0, 0.6, (2, count)))
    arrivals = np.cumsum(rng.exponential(1.0, count)) / rate_per_s
    return Workload(
        name=f"{rate_per_s:.2f} requests a second",
        arrival_us=(1e6 * arrivals).astype(np.int64),
        prompt_tokens=(plan.prompt_median * lengths[0]).clip(16, 2048).astype(np.int32),
        output_tokens=(plan.output_median * lengths[1]).clip(4, 512).astype(np.int32),
    )


def calibrated(bench: Bench, plan: Plan, out: Path, found: dict[str, object]) -> dict[str, StepTables]:
    """Both models' tables, fitted on the same bursts."""
    sample = requests(plan, 200, 1.0, seed=99)
    with tempfile.TemporaryDirectory() as thrown_away:  # kernels compile when a kind of launch is first met
        calibrate(bench, sample, Path(thrown_away), len(plan.bursts), seed=1000, requests=plan.bursts)
    paths: list[Path] = []
    for turn in range(plan.rounds):
        seed = turn * len(plan.bursts)
        paths += calibrate(bench, sample, out, len(plan.bursts), seed=seed, requests=plan.bursts)
    limits = bench.limits
    profile = fit_steps(paths)
    found["whole_step"] = profile_rows(profile)
    knotted = fit_knotted(paths)
    found["knotted"] = knotted.as_json()
    # how steps scattered around it, from 5 % to 95 %
    found["factors"] = np.quantile(np.concatenate(factors_of(knotted, paths)), [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    sizes = (limits.max_num_batched_tokens, limits.max_running, limits.max_model_len)
    kv_tokens = bench.executor.num_blocks * limits.block_size
    return {
        "knotted": knotted_tables(knotted, *sizes, kv_tokens),
        "whole step": profile_tables(profile, bench),
    }


def knee_per_s(limits: Limits, num_blocks: int, tables: StepTables, plan: Plan) -> float:
    """The largest rate, to 1 %, at which the number of requests in the system does not keep growing."""

    def grows(rate_per_s: float) -> bool:
        result = simulate(requests(plan, 2000, rate_per_s, seed=7), limits, tables, num_blocks)
        return saturation(result.requests).saturated

    low, high = 0.1, 0.2
    while not grows(high) and high < 1e4:
        low, high = high, 2 * high
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if grows(middle) else (middle, high)
    return low


def offline(bench: Bench, plan: Plan) -> dict[str, object]:
    """Everything at once: tokens a second at most."""
    workload = requests(plan, 2 * plan.max_num_seqs, 1e6, seed=3)
    run = bench.serve(workload)
    summary = summarize(run.result)
    found: dict[str, object] = {"requests": len(workload), "failure": run.failure}
    return found | {"throughput": summary["throughput"], "batch": summary["batch"]}


def at_load(
    bench: Bench, plan: Plan, load: float, knee: float, tables: dict[str, StepTables], out: Path, logs: Path
) -> dict[str, object]:
    """Serve at a share of the knee, predict by both models, write the log and a page of the first."""
    rate = load * knee
    count = int(min(plan.most_requests, max(50, rate * plan.run_s)))
    run = bench.serve(requests(plan, count, rate, seed=11))
    write_measured_run(run, logs / f"load-{load}.jsonl.gz")
    if run.failure.startswith("interrupted"):
        raise KeyboardInterrupt
    result: dict[str, object] = {"rate_per_s": rate, "requests": count, "failure": run.failure}
    for name, table in tables.items():
        comparison, alike = compared(run, table)
        result[name] = rows(comparison)
        result[f"{name}, steps"] = [vars(error) for error in comparison.kinds]
        result["steps planned alike"] = alike
        if name == "knotted":
            page = comparison_page(comparison, f"Load {load} of the knee", [("Requests a second", f"{rate:.2f}")])
            (out / f"load-{load}.html").write_text(page, encoding="utf-8")
    return result


def compared(run: MeasuredRun, tables: StepTables) -> tuple[Comparison, str]:
    """A run beside the virtual clock, and how many of its steps the engine plans alike."""
    again = replay(run, tables)
    assert again.steps is not None
    return compare_runs(run.result, predicted(run, tables), again.steps), f"{again.identical} of {len(run.steps)}"


def rows(comparison: Comparison) -> list[dict[str, object]]:
    """Each aim beside what was found."""
    found = []
    for (metric, statistic), aim in AIMS.items():
        pair = comparison.pair(f"{metric}_{statistic}_s")
        error = pair.error
        found.append(
            {
                "name": f"{metric.upper()} {statistic}",
                "measured_s": pair.measured,
                "predicted_s": pair.predicted,
                "error": error,
                "aim": aim,
                "met": error is not None and abs(error) <= aim,
            }
        )
    return found


def answers_agree(found: dict[str, object]) -> bool:
    """Greedy answers of a two-layer float32 decoder: batched, chunked, padded to captures, preempted, asynchronous."""
    plan = Plan(layers=2, dtype="float32", max_model_len=512, max_num_seqs=8)
    workload = selected(requests(plan, 12, 1e6, seed=5), np.arange(12))
    workload = replace(workload, prompt_tokens=workload.prompt_tokens.clip(16, 300))
    workload = replace(workload, output_tokens=workload.output_tokens.clip(4, 60))

    def served(tokens: int, captures: tuple[int, ...], blocks: int, overlap: bool = False) -> list[list[int]]:
        engine = EngineSettings(
            max_num_batched_tokens=tokens,
            max_num_seqs=plan.max_num_seqs,
            max_model_len=plan.max_model_len,
            num_gpu_blocks_override=blocks,
            enable_prefix_caching=False,
            async_scheduling=overlap,
        )
        settings = TestbedSettings(device="cuda", layers=2, dtype="float32", capture_sizes=captures)
        run = set_up(plan.model, engine, settings).serve(workload)
        if run.failure:
            raise InputError(f"answers: {run.failure}")
        return [output.tolist() for output in run.outputs]

    right = served(2048, (), 1000)
    ways = {
        "in chunks of 64": served(64, (), 1000),
        "padded and replayed": served(2048, (1, 2, 4, 8), 1000),
        "preempted and recomputed": served(512, (8,), 60),
        "asynchronous": served(2048, (1, 2, 4, 8), 1000, overlap=True),
        "asynchronous, kernel by kernel, in chunks of 64": served(64, (), 1000, overlap=True),
        "asynchronous, preempted and recomputed": served(512, (8,), 60, overlap=True),
    }
    share = {name: float(np.mean([a == b for a, b in zip(right, way, strict=True)])) for name, way in ways.items()}
    found["requests with the same answer"] = share
    return all(value == 1.0 for value in share.values())


def report_lines(found: dict[str, object]) -> list[str]:
    """testbed.md."""
    machine = found["machine"]
    assert isinstance(machine, dict)
    lines = ["# Testbed on a GPU", "", ", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    for key in (
        "requests with the same answer",
        "kv_blocks",
        "knee_requests_per_s",
        "offline",
        "whole_step",
        "seconds",
        "ended",
    ):
        if key in found:
            lines.append(f"- {key}: {found[key]}")
    for load in LOADS:
        result = found.get(f"load {load}", "not reached")
        if not isinstance(result, dict):
            lines += ["", f"## Load {load}: {result}"]
            continue
        lines += ["", f"## Load {load}: {result['rate_per_s']:.2f} requests a second, {result['requests']} requests"]
        lines.append(f"steps planned alike on replay: {result['steps planned alike']}; {result['failure']}")
        for name in ("knotted", "whole step"):
            lines += ["", f"| {name} | measured | predicted | error | aim | |", "|---|---|---|---|---|---|"]
            lines += [row_line(row) for row in result[name]]
            lines += [f"\nsteps: {error}" for error in result[f"{name}, steps"]]
    return lines


def row_line(row: dict[str, object]) -> str:
    """One line of a load's table."""
    measured, told = (in_ms(row[key]) for key in ("measured_s", "predicted_s"))
    error = "none" if row["error"] is None else f"{row['error']:+.1%}"
    verdict = "met" if row["met"] else "missed"
    return f"| {row['name']} | {measured} | {told} | {error} | {row['aim']:.0%} | {verdict} |"


def in_ms(seconds: object) -> str:
    """A time in a table; a run that was cut short may have none."""
    return f"{1e3 * float(str(seconds)):.1f} ms" if isinstance(seconds, int | float) else "none"


def note(found: dict[str, object], what: str, began: float) -> None:
    """Say how far the run is, and keep it."""
    seconds = found.setdefault("seconds", {})
    assert isinstance(seconds, dict)
    seconds[what] = round(time.perf_counter() - began, 1)
    print(f"{what}: {seconds[what]} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
