"""How well is a measured run on this machine's CPU predicted? Three repeats, calibrated in between, one command.

    python experiments/testbed/cpu.py                  about 4 minutes; --out DIR for the logs, numbers and pages
    python experiments/testbed/cpu.py --clock processor  on a machine that others use as well
    python experiments/testbed/cpu.py --quick          20 s: is everything connected? Its times mean nothing

A decoder of 99 M parameters serves 60 requests three times. Before and after each repeat come calibration bursts of
other requests; one step-time model is fitted on all bursts, none of the repeats, and the virtual clock then serves the
same arrivals, its steps scattered around the model as the bursts' were. Then once more with asynchronous scheduling, by
bursts of its own (left out with --clock processor, which counts one thread). A fixed step, the sentinel, is timed
between all phases: where it moves, the machine did, and no prediction can do better. Exit code 1 where an aim is
missed, with the spread of the repeats beside it.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from simkit.calibrate.step_fit import profile_rows
from simkit.engine.settings import EngineSettings
from simkit.engine.warm_up import warm_up
from simkit.metrics.comparison import Comparison, compare_runs
from simkit.report.side_by_side import comparison_page, comparison_tables
from simkit.testbed.bench import Bench, set_up
from simkit.testbed.calibration import calibrate, fitted
from simkit.testbed.inputs import Decodes, StepInputs
from simkit.testbed.measured import MeasuredRun
from simkit.testbed.measured_run import write_measured_run
from simkit.testbed.replay import replay
from simkit.testbed.settings import TestbedSettings
from simkit.testbed.spread import predicted_with_spread
from simkit.testbed.wall_clock import CLOCKS
from simkit.workloads.workload import Workload

HERE = Path(__file__).parent
AIMS = {"p50": 0.10, "p90": 0.20}
DRAWS = 15  # of how steps scatter; what is predicted is their median, as what was measured is the repeats'
METRICS = ("e2e", "ttft", "itl")


@dataclass(frozen=True)
class Size:
    """How much is run."""

    layers: int
    requests: int
    rate_per_s: float
    repeats: int
    bursts: int  # around each repeat


FULL = Size(layers=8, requests=60, rate_per_s=1.6, repeats=3, bursts=4)
QUICK = Size(layers=1, requests=12, rate_per_s=12.0, repeats=2, bursts=2)
WAYS = {"one step at a time": False, "asynchronous scheduling": True}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    size = QUICK if asked.quick else FULL
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, object] = {}
        for way, overlap in WAYS.items():
            if not (overlap and asked.clock == "processor"):
                print(f"{way}:")
                found[way] = measured_beside_predicted(size, asked.threads, asked.clock, overlap, folder)
        (folder / "numbers.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"{time.perf_counter() - began:.0f} s in all")
    met = all(row["met"] for each in found.values() for row in each["rows"])
    return 0 if met or asked.quick else 1


def measured_beside_predicted(
    size: Size, threads: int, clock: str, overlap: bool, folder: Path
) -> dict[str, list[dict[str, object]] | list[float]]:
    """Everything for one way of scheduling, printed; what goes into numbers.json."""
    if overlap:
        size = replace(size, repeats=1)
        folder = folder / "asynchronous"
        folder.mkdir(exist_ok=True)
    bench = build(size, threads, clock, overlap)
    runs, logs, sentinel_s = measure(bench, size, folder)
    return {"rows": show(*compare(bench, runs, logs, folder), sentinel_s), "sentinel_s": sentinel_s}


def build(size: Size, threads: int, clock: str, overlap: bool) -> Bench:
    """The decoder on bound threads; the engine's sizes keep a step below a fifth of a second."""
    engine = EngineSettings(
        max_num_batched_tokens=256,
        max_num_seqs=16,
        max_model_len=512,
        num_gpu_blocks_override=600,
        enable_prefix_caching=False,
        async_scheduling=overlap,
    )
    settings = TestbedSettings(device="cpu", layers=size.layers, threads=threads, dtype="bfloat16", clock=clock)
    bench = set_up(str(HERE / "decoder_100m.json"), engine, settings)
    warm_up()
    print(f"{bench.executor.identity.device}; {bench.executor.identity.engine}; clock {clock}")
    return bench


def requests(size: Size) -> Workload:
    """Poisson arrivals, log-normal prompts (median 96) and answers (median 32), the same in every repeat."""
    rng = np.random.default_rng(5)
    n = size.requests
    return Workload(
        name="cpu",
        arrival_us=np.cumsum(rng.exponential(1e6 / size.rate_per_s, n)).astype(np.int64),
        prompt_tokens=np.exp(rng.normal(np.log(96), 0.6, n)).clip(8, 400).astype(np.int32),
        output_tokens=np.exp(rng.normal(np.log(32), 0.6, n)).clip(2, 100).astype(np.int32),
    )


def measure(bench: Bench, size: Size, folder: Path) -> tuple[list[MeasuredRun], list[Path], list[float]]:
    """Repeats with bursts around each, and the sentinel between all."""
    workload = requests(size)
    runs: list[MeasuredRun] = []
    logs: list[Path] = []
    sentinel_s = [sentinel(bench)]
    for repeat in range(size.repeats + 1):
        logs += calibrate(bench, workload, folder, size.bursts, seed=repeat * size.bursts)
        sentinel_s.append(sentinel(bench))
        if repeat < size.repeats:
            run = bench.serve(workload)
            write_measured_run(run, folder / f"repeat-{repeat + 1}.jsonl.gz")
            if run.failure:
                sys.exit(f"repeat {repeat + 1}: {run.failure}")
            runs.append(run)
            sentinel_s.append(sentinel(bench))
            print(f"repeat {repeat + 1} of {size.repeats}: {len(run.steps)} steps")
    return runs, logs, sentinel_s


def sentinel(bench: Bench) -> float:
    """Seconds of one fixed step, four decodes of 128 tokens of context: the median of nine."""
    n, context, block = 4, 128, bench.executor.block_size
    blocks = 1 + np.arange(n * context // block).reshape(n, -1)
    last = blocks[:, -1] * block + (context - 1) % block
    step = StepInputs(
        tokens=np.zeros(n, dtype=np.int64),
        positions=np.full(n, context - 1),
        slots=last,
        decodes=Decodes(np.arange(n), blocks, np.full(n, context)),
        chunks=(),
        sampled=np.arange(n),
    )
    clock = CLOCKS[bench.clock]()
    times = []
    for _ in range(9):
        start = clock.now_ns()
        if bench.limits.pipeline_depth == 1:
            bench.executor.run(step)
        else:
            bench.executor.launch(step, clock.now_ns)[1].result()
        times.append((clock.now_ns() - start) / 1e9)
    return float(np.median(times))


def compare(
    bench: Bench, runs: list[MeasuredRun], logs: list[Path], folder: Path
) -> tuple[list[Comparison], list[Comparison]]:
    """Each repeat beside a draw of the prediction, whose log must be replayed to the same decisions; and more draws."""
    profile, model, tables, factors = fitted(logs, bench)
    for name, value in profile_rows(profile):
        print(f"whole-step model, {name}: {value}")
    print(f"knotted model, which predicts: {json.dumps(model.as_json())}")
    comparisons = []
    for number, run in enumerate(runs, start=1):
        again = replay(run, tables)
        if again.difference or again.steps is None:
            sys.exit(f"repeat {number}: the replay of its log differs at {again.difference}")
        told = predicted_with_spread(run, tables, factors, seed=number)
        comparison = compare_runs(run.result, told, again.steps)
        steps = sum(source.steps for source in profile.sources)
        facts = [
            ("Device", run.identity.device),
            ("Executor", run.identity.engine),
            ("Step times", f"knotted model, fitted to {steps:,} steps of other requests, scattered as these were"),
        ]
        page = comparison_page(comparison, f"CPU, repeat {number}", facts)
        (folder / f"repeat-{number}.html").write_text(page, encoding="utf-8")
        comparisons.append(comparison)
    print(f"replay: all {sum(len(run.steps) for run in runs):,} steps of {len(runs)} logs planned alike")
    drawn = [predicted_with_spread(runs[0], tables, factors, seed) for seed in range(DRAWS)]
    return comparisons, [compare_runs(runs[0].result, told, comparisons[0].steps) for told in drawn]


def show(comparisons: list[Comparison], drawn: list[Comparison], sentinel_s: list[float]) -> list[dict[str, object]]:
    """Print the verdict and return it."""
    from rich.console import Console

    Console(width=120).print(comparison_tables(comparisons[-1])[1])
    rows = [row(comparisons, drawn, metric, statistic) for metric in METRICS for statistic in AIMS]
    print(f"{'':10}{'measured, each repeat, ms':>36}{'spread':>9}{'predicted':>11}{'error':>9}{'aim':>7}")
    for found in rows:
        each = "  ".join(f"{1e3 * value:9.1f}" for value in found["measured_s"])
        print(
            f"{found['name']:10}{each:>36}{found['spread']:9.1%}{1e3 * found['predicted_s']:11.1f}"
            f"{found['error']:+9.1%}{found['aim']:7.0%} {'met' if found['met'] else 'missed'}"
        )
    drift = max(sentinel_s) / min(sentinel_s) - 1
    each = " ".join(f"{1e3 * value:.1f}" for value in sentinel_s)
    print(f"sentinel: {each} ms, largest over smallest {drift:+.1%}")
    return rows


def row(comparisons: list[Comparison], drawn: list[Comparison], metric: str, statistic: str) -> dict[str, object]:
    """One quantity: each repeat, their spread (largest - smallest, over the median), the median draw's error."""
    name = f"{metric}_{statistic}_s"
    measured = [float(each.pair(name).measured or 0.0) for each in comparisons]
    middle = float(np.median(measured))
    told = float(np.median([each.pair(name).predicted or 0.0 for each in drawn]))
    error = told / middle - 1.0
    return {
        "name": f"{metric.upper()} {statistic}",
        "measured_s": measured,
        "spread": (max(measured) - min(measured)) / middle,
        "predicted_s": told,
        "error": error,
        "aim": AIMS[statistic],
        "met": abs(error) <= AIMS[statistic],
    }


if __name__ == "__main__":
    sys.exit(main())
