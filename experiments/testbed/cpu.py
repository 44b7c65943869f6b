"""How well is a measured run on this machine's CPU predicted? Three repeats, calibrated in between, one command.

    python experiments/testbed/cpu.py                  five to six minutes; --out DIR for logs, numbers and pages
    python experiments/testbed/cpu.py --clock processor  on a machine that others use as well
    python experiments/testbed/cpu.py --quick          20 s: is everything connected? Its times mean nothing

A decoder of 99 M parameters serves 39 requests three times, in shifts of 13. Before and after each shift come
calibration bursts of other requests. One step-time model is fitted on all bursts; the virtual clock serves the same
arrivals with it, each shift's steps scattered around the model as those of the bursts beside it were. Then once more
with asynchronous scheduling, by bursts of its own (left out with --clock processor, which counts one thread). A fixed
step, the sentinel, is timed between all of these: it says which shifts were disturbed and are served again, by the rule
of `shifts.py`. Printed: each repeat, their spread, the median prediction beside the median repeat. Exit code 1 where an
aim is missed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from repeats import Repeat, joined, row_lines, rows
from shifts import MOST_OFF, Actions, Attempt, counted, in_shifts, median_s, off

from simkit.calibrate.step_fit import profile_rows
from simkit.engine.settings import EngineSettings
from simkit.engine.warm_up import warm_up
from simkit.metrics.comparison import Comparison, StepTimes, compare_runs, step_errors
from simkit.metrics.result import RunResult
from simkit.report.side_by_side import comparison_page, comparison_tables
from simkit.testbed.bench import Bench, set_up
from simkit.testbed.calibration import Fitted, calibrate, fitted
from simkit.testbed.inputs import Decodes, StepInputs
from simkit.testbed.knotted_step import factors_of
from simkit.testbed.measured import MeasuredRun
from simkit.testbed.measured_run import write_measured_run
from simkit.testbed.replay import replay
from simkit.testbed.settings import TestbedSettings
from simkit.testbed.spread import predicted_with_spread
from simkit.testbed.wall_clock import CLOCKS
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

HERE = Path(__file__).parent
SHIFTS = 3  # of a repeat
SENTINEL_STEPS = 7
# the sentinel on the machines that the sizes below were chosen on; on a slower one bursts have fewer requests, so that
# they take as long, but enough for more in a batch than a shift has at once
SENTINEL_S = 0.021
FEWEST_OF_A_FULL_BURST = 12
DRAWS = 25  # of how steps scatter
PRIORITY = -20  # nice
AUTOGROUP = Path("/proc/self/autogroup")


@dataclass(frozen=True)
class Size:
    """How much is run."""

    layers: int
    requests: int  # of a repeat
    rate_per_s: float
    repeats: int
    bursts: tuple[int, ...]  # requests of each burst between two shifts, full ones and small ones
    # from the beginning of all; no shift is served again past it, so that all is done within six minutes
    until_s: float


FULL = Size(layers=8, requests=39, rate_per_s=1.6, repeats=3, bursts=(20, 5), until_s=190.0)
QUICK = Size(layers=1, requests=12, rate_per_s=12.0, repeats=1, bursts=(12,), until_s=0.0)
ASYNCHRONOUS_UNTIL_S = 325.0  # what is computed after the last shift takes some 20 s more


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with nullcontext("priority as it was") if asked.quick else first_in_line() as priority:
        print(priority)
        return run(asked)


def run(asked: argparse.Namespace) -> int:
    """Both ways of scheduling; the exit code."""
    began = time.perf_counter()
    size = QUICK if asked.quick else FULL
    ways = {"one step at a time": (False, size)}
    if asked.clock != "processor":
        ways["asynchronous scheduling"] = (True, size if asked.quick else replace(size, until_s=ASYNCHRONOUS_UNTIL_S))
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.out or Path(scratch)
        found: dict[str, dict[str, object]] = {}
        for way, (overlap, size) in ways.items():
            print(f"{way}:", flush=True)
            part = folder / "asynchronous" if overlap else folder
            part.mkdir(parents=True, exist_ok=True)
            bench = build(size, asked.threads, asked.clock, overlap)
            found[way] = measured_beside_predicted(bench, size, part, began + size.until_s, asked.out is not None)
            (folder / "numbers.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"{time.perf_counter() - began:.0f} s in all")
    met = all(row["met"] for each in found.values() for row in each["rows"])
    return 0 if met or asked.quick else 1


@contextmanager
def first_in_line() -> Iterator[str]:
    """Run before other processes that want the same cores, where that is allowed; yields what came of it, in words.

    A core that is shared makes some steps twice to four times as long, for seconds at a time, which no calibration
    foretells; what is left then is the others' use of memory and caches. Linux divides a core between sessions first
    (sched(7), autogroup), so the session is put first as well until this is over.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)  # threads that are made later inherit it
    except (AttributeError, OSError):
        yield "priority as any other process's, for want of permission: times hang on what else runs here"
        return
    before = 0
    with suppress(OSError, ValueError):
        before = int(AUTOGROUP.read_text().split()[-1])
    with suppress(OSError):
        AUTOGROUP.write_text(str(PRIORITY))
    try:
        yield f"priority {PRIORITY}: before other processes"
    finally:
        with suppress(OSError):
            AUTOGROUP.write_text(str(before))


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


def shifts_of(workload: Workload) -> list[Workload]:
    """Its requests in `SHIFTS` parts, each with a clock of its own that begins with the first request."""
    parts = [selected(workload, part) for part in np.array_split(np.arange(len(workload)), SHIFTS)]
    return [replace(part, arrival_us=part.arrival_us - part.arrival_us[0]) for part in parts]


def measured_beside_predicted(bench: Bench, size: Size, folder: Path, until_s: float, pages: bool) -> dict[str, object]:
    """Everything for one way of scheduling, printed and written; what goes into numbers.json."""
    attempts = measure(bench, size, folder, until_s)
    kept, median = counted(attempts), median_s(attempts)
    facts = [attempt_facts(attempt, any(attempt is one for one in kept), median) for attempt in attempts]
    for each in facts:
        print(attempt_line(each))
    disturbed = sum(off(attempt, median) > MOST_OFF for attempt in kept)
    print(f"sentinel: median {1e3 * median:.1f} ms; {len(attempts) - len(kept)} shifts served again, "
          f"{disturbed} of {len(kept)} that count off by more than {MOST_OFF:.0%}")  # fmt: skip
    found = fitted(list(dict.fromkeys(path for attempt in kept for path in bursts_beside(attempt))), bench)
    for name, value in profile_rows(found.profile):
        print(f"whole-step model, {name}: {value}")
    print(f"knotted model, which predicts: {json.dumps(found.model.as_json())}")
    steps = {id(attempt): replayed(attempt.run, found) for attempt in attempts}
    print(f"replay: all {sum(len(each.run.steps) for each in attempts):,} steps of {len(attempts)} logs planned alike")
    drawn = [draws_of(attempt, found) for attempt in kept]
    beside = [
        compare_runs(attempt.run.result, draws[0], steps[id(attempt)])
        for attempt, draws in zip(kept, drawn, strict=True)
    ]
    show_steps(beside)
    repeats = [range(first, first + SHIFTS) for first in range(0, len(kept), SHIFTS)]
    table = rows(
        [
            Repeat(
                measured=tuple(kept[shift].run.result for shift in repeat),
                predicted=tuple(tuple(drawn[shift][draw] for shift in repeat) for draw in range(DRAWS)),
            )
            for repeat in repeats
        ]
    )
    print("\n".join(row_lines(table)), flush=True)
    if pages:  # of each repeat's first shift
        for number, repeat in enumerate(repeats, start=1):
            page = page_of(kept[repeat[0]], beside[repeat[0]], found)
            (folder / f"repeat-{number}.html").write_text(page, encoding="utf-8")
    return {"rows": table, "attempts": facts, "sentinel_s": median}


def measure(bench: Bench, size: Size, folder: Path, until_s: float) -> list[Attempt]:
    """All shifts of all repeats, by the rule of `shifts.py`."""
    whole = requests(size)
    parts = shifts_of(whole)
    numbers, seeds = count(1), count(0, len(size.bursts))
    sizes = burst_sizes(size, sentinel_s(bench))
    print(f"calibration bursts of {' and '.join(str(each) for each in sizes)} requests", flush=True)

    def serve(shift: int) -> MeasuredRun:
        number = next(numbers)
        run = bench.serve(parts[shift % SHIFTS])
        write_measured_run(run, folder / f"attempt-{number}-shift-{shift + 1}.jsonl.gz")
        if run.failure:
            sys.exit(f"attempt {number}, shift {shift + 1}: {run.failure}")
        print(f"attempt {number}, shift {shift + 1} of {size.repeats * SHIFTS}: {len(run.steps)} steps", flush=True)
        return run

    def bursts() -> list[Path]:
        return calibrate(bench, whole, folder, len(sizes), seed=next(seeds), requests=sizes)

    actions = Actions(serve, bursts, lambda: sentinel_s(bench))
    return in_shifts(actions, size.repeats * SHIFTS, until_s)


def burst_sizes(size: Size, sentinel: float) -> tuple[int, ...]:
    """Requests of each burst, on a machine whose sentinel takes so many seconds."""
    slower = max(1.0, sentinel / SENTINEL_S)
    return tuple(min(each, max(FEWEST_OF_A_FULL_BURST, round(each / slower))) for each in size.bursts)


def sentinel_s(bench: Bench) -> float:
    """Seconds of one fixed step, four decodes of 128 tokens of context: the median of `SENTINEL_STEPS`."""
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
    for _ in range(SENTINEL_STEPS):
        start = clock.now_ns()
        if bench.limits.pipeline_depth == 1:
            bench.executor.run(step)
        else:
            bench.executor.launch(step, clock.now_ns)[1].result()
        times.append((clock.now_ns() - start) / 1e9)
    return float(np.median(times))


def bursts_beside(attempt: Attempt) -> tuple[Path, ...]:
    """The logs of the bursts before and after a shift."""
    return (*attempt.before.bursts, *attempt.after.bursts)


def draws_of(attempt: Attempt, found: Fitted) -> list[RunResult]:
    """A shift predicted: the model of all bursts, steps as far from it as in the bursts nearest in time."""
    factors = factors_of(found.model, bursts_beside(attempt))
    # no two shifts of a repeat go through the bursts between them in the same order
    seeds = range(attempt.shift * DRAWS, (attempt.shift + 1) * DRAWS)
    return [predicted_with_spread(attempt.run, found.tables, factors, seed) for seed in seeds]


def replayed(run: MeasuredRun, found: Fitted) -> StepTimes:
    """Each step beside the model, where the engine plans all of them as it did."""
    again = replay(run, found.tables)
    if again.difference or again.steps is None:
        sys.exit(f"the replay of a log differs at {again.difference}")
    return again.steps


def show_steps(comparisons: Sequence[Comparison]) -> None:
    """The errors of single steps, whatever batches they were given."""
    from rich.console import Console

    every = replace(comparisons[-1], kinds=step_errors(joined([each.steps for each in comparisons])))
    Console(width=120).print(comparison_tables(every)[1])


def page_of(attempt: Attempt, comparison: Comparison, found: Fitted) -> str:
    """A shift and a draw of its prediction, as HTML."""
    identity = attempt.run.identity
    steps = sum(source.steps for source in found.profile.sources)
    said = f"knotted model, fitted to {steps:,} steps of other requests, scattered as those of the nearest bursts"
    facts = [("Device", identity.device), ("Executor", identity.engine), ("Step times", said)]
    return comparison_page(comparison, f"CPU, shift {attempt.shift + 1}", facts)


def attempt_facts(attempt: Attempt, counts: bool, median: float) -> dict[str, object]:
    """What is told of an attempt."""
    return {
        "shift": attempt.shift + 1,
        "steps": len(attempt.run.steps),
        "sentinels_s": attempt.sentinels_s,
        "off": off(attempt, median),
        "counts": counts,
    }


def attempt_line(facts: dict[str, object]) -> str:
    """The same in a line."""
    each = " ".join(f"{1e3 * value:.1f}" for value in facts["sentinels_s"])
    verdict = "counts" if facts["counts"] else "does not count"
    return f"shift {facts['shift']}: sentinels {each} ms, at most {facts['off']:.0%} off: {verdict}"


if __name__ == "__main__":
    sys.exit(main())
