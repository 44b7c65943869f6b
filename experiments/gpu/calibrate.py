"""Calibrate a CUDA device in one run of under 9 minutes: measure, fit, held-out error, composed layers, report.

    python experiments/gpu/calibrate.py --out results          # or OUT=results in the environment

Writes OUT/profile (what `simkit run --profile` takes), OUT/report.json and OUT/report.md: device, versions, clocks,
every aim met or missed. Without a CUDA device it says so and ends before the first device call. A process of its own
does it: where a point takes more than a minute it is ended, and another goes on, in another order, with what was kept;
hung twice, the profile is what there is by then (`watched.py`).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from stages import LOST, Row, Stages
from watched import watch

from simkit.calibrate.emitted_points import Step
from simkit.calibrate.emitted_step_time import ComposedError, StepComposer, composed_error
from simkit.calibrate.measure import Progress
from simkit.calibrate.measure_device import open_device
from simkit.calibrate.measure_run import measured_profile, plan_of
from simkit.calibrate.measure_summary import TableSummary, table_summaries
from simkit.calibrate.operator_errors import Predicted, held_out_predictions
from simkit.calibrate.operator_model import fit_operators
from simkit.calibrate.operator_profile import OperatorProfile, read_operator_profile
from simkit.calibrate.points_scope import Scope, attention_shapes, step_bytes
from simkit.cli.calibrate_measure import parse_seconds, replayed_steps, scope_of
from simkit.errors import InputError
from simkit.models.catalog import load_model

MODELS = ["llama-3.1-8b", "qwen3-30b-a3b"]
COMPOSED_MODEL, COMPOSED_LAYERS, COMPOSED_STEPS = "llama-3.1-8b", 4, 100
COMPOSED_S = 60.0  # at most
PAGE_TOKENS = 16
SAMPLES = 5  # of each composed step
POINT_S = 60.0  # of one point, or of one composed step, at most
START_S = 180.0  # from a start to the first point: imports, the scheduler's compilation, replayed steps
TURNS = 2  # of the measurement: what hangs is met again, at random, so a third would not get far
UNIFORM = 1.25  # longest over mean context of a batch that counts as uniform


class Aim(NamedTuple):
    """What a figure should be at most."""

    name: str
    figure: float | None  # None: nothing was measured for it
    limit: float

    @property
    def verdict(self) -> str:
        """For people."""
        if self.figure is None:
            return "not measured"
        return "met" if abs(self.figure) <= self.limit else "missed"


def errors_of(predicted: Predicted) -> np.ndarray:
    """Signed errors of held-out rows as shares of the measured times, f64[rows]."""
    off: np.ndarray = predicted.times.ns / predicted.rows["median_ns"].to_numpy(float) - 1.0
    return off


def operator_aims(profile: OperatorProfile) -> list[Aim]:
    """The aims on held-out operators: points of replayed steps, and whole regions of the grid of even batches."""
    kept = {found.table: found for found in held_out_predictions(profile) if found.region == "held out"}
    aims = [
        Aim("GEMM, replayed steps, mean error", mean_error(kept.get("gemm")), 0.04),
        Aim("prefill, replayed steps, mean error", mean_error(kept.get("attention_prefill")), 0.05),
    ]
    decode = kept.get("attention_decode")
    if decode is not None:
        rows = decode.rows
        skew = (rows["longest_tokens"] * rows["batch"] / rows["context_tokens"]).to_numpy(float)
        off = np.abs(errors_of(decode))
        skewed, uniform = off[skew > UNIFORM], off[skew <= UNIFORM]
        aims.append(Aim("skewed decode, replayed steps, p90", quantile(skewed, 0.9), 0.10))
        aims.append(Aim("uniform decode, replayed steps, mean error", quantile(uniform, None), 0.05))
    aims.append(Aim("uniform decode, left-out cells of the grid, mean error", mean_error(decode_cells(profile)), 0.05))
    return aims


def decode_cells(profile: OperatorProfile) -> Predicted | None:
    """Even batches predicted from a grid with a hole where they are."""
    frame = profile.tables.get("attention_decode")
    if frame is None:
        return None
    grid = frame[(frame["use"] == "fit") & (frame["contexts"] == "")].reset_index(drop=True)
    found = held_out_predictions(replace(profile, tables={"attention_decode": grid}))
    return next((predicted for predicted in found if predicted.region == "cells"), None)


def mean_error(predicted: Predicted | None) -> float | None:
    """The mean absolute error, None if there is nothing."""
    return None if predicted is None else float(np.abs(errors_of(predicted)).mean())


def quantile(values: np.ndarray, level: float | None) -> float | None:
    """A quantile, or the mean; None of nothing."""
    if not len(values):
        return None
    return float(values.mean() if level is None else np.quantile(values, level))


def composed_aims(error: ComposedError | None) -> list[Aim]:
    """The aims on whole steps of real layers."""
    figures = (None, None, None) if error is None else (error.median_abs, error.p95_abs, error.bias)
    names = ("composed layers, median error", "composed layers, p95", "composed layers, bias")
    return [Aim(name, figure, limit) for name, figure, limit in zip(names, figures, (0.05, 0.12, 0.02), strict=True)]


def chosen_steps(steps: Sequence[Step], count: int, seed: int) -> list[Step]:
    """Steps drawn at random, each at most once."""
    rng = np.random.default_rng((seed, 0xC0))
    return [steps[i] for i in rng.permutation(len(steps))[:count]]


def composed_steps(profile: OperatorProfile, scope: Scope, steps: Sequence[Step]) -> Iterator[Row]:
    """Predicted and measured ns of whole steps of a real decoder of a few layers, each at its own size.

    Where one fails (memory, a kernel), those before it are what there is.
    """
    import torch

    from simkit.kernels.cold_timing import GraphTimer
    from simkit.kernels.jit import KernelError
    from simkit.kernels.random_decoder import new_cache, random_decoder, run_step
    from simkit.kernels.step_batch import Share, step_batch

    arch = load_model(COMPOSED_MODEL)
    decoder = random_decoder(arch, COMPOSED_LAYERS, max_context_tokens=scope.max_context + 1)
    pages = scope.kv_tokens // PAGE_TOKENS
    caches = new_cache(decoder, pages, PAGE_TOKENS)
    composer = StepComposer(fit_operators(profile), decoder.architecture, scope.dtype)
    rng = np.random.default_rng(0)
    until = time.monotonic() + COMPOSED_S
    for number, step in enumerate(steps):
        if time.monotonic() > until:
            break
        drawn = iter(rng.permutation(pages).tolist())
        shares = [
            Share(
                rng.integers(0, arch.vocab, share.new).tolist(),
                share.before,
                [next(drawn) for _ in range(-(-(share.before + share.new) // PAGE_TOKENS))],
                share.samples,
            )
            for share in step
        ]
        try:
            batch = step_batch(shares, PAGE_TOKENS, torch.device("cuda"))
            timer = GraphTimer([lambda batch=batch: run_step(decoder, caches, batch).argmax(dim=-1)])  # type: ignore[misc]
            took_ns = 1e3 * float(np.median([timer.sample_us() for _ in range(SAMPLES)]))
        except (RuntimeError, ValueError, KernelError) as error:
            print(f"composed step {number + 1}: {' '.join(str(error).split())[:200]}", flush=True)
            break
        yield [composer.ns(step), took_ns]


def report(
    profile: OperatorProfile, tables: list[TableSummary], aims: list[Aim], wall_s: float, cuts: Sequence[str] = ()
) -> str:
    """What was found, in markdown; `cuts` say why measurements were cut short."""
    header = profile.header
    seen = header.seen
    lines = [
        f"# Calibration of {header.device}",
        "",
        f"{header.created}, {wall_s:.0f} s, simkit {header.simkit_version}, "
        + ", ".join(f"{name} {version}" for name, version in header.versions.items() if name != "simkit"),
        "",
        f"{seen.name}, driver {seen.driver}, SM clock {seen.clock_mhz} MHz, memory clock {seen.memory_clock_mhz} MHz, "
        f"{seen.power_w} of {seen.power_limit_w} W, {seen.temperature_c} C, throttled: {seen.throttled or 'no'}",
        "",
        *(f"- {note}" for note in header.notes),
        *(f"- a measurement was cut short: {cut}" for cut in cuts),
        "",
        "| aim | at most | found | |",
        "|---|---|---|---|",
    ]
    for aim in aims:
        found = "" if aim.figure is None else f"{aim.figure:+.1%}" if "bias" in aim.name else f"{aim.figure:.1%}"
        lines.append(f"| {aim.name} | {aim.limit:.0%} | {found} | {aim.verdict} |")
    lines += ["", "| table | points | held out | noise p50 | noise p90 |", "|---|---|---|---|---|"]
    for table in tables:
        noise = f"{table.noise_p50:.1%} | {table.noise_p90:.1%}"
        lines.append(f"| {table.table} | {table.points} | {table.held_out} | {noise} |")
    return "\n".join(lines) + "\n"


def require_cuda() -> None:
    """InputError where there is no CUDA device."""
    try:
        import torch
    except ImportError:
        raise InputError("no torch here; install the extra gpu") from None
    if not torch.cuda.is_available():
        raise InputError("no CUDA device; experiments/calibrate/cpu.py runs the same path on a CPU")


def run(out: Path, models: list[str], budget_s: float, seed: int, started: float, stages: Stages) -> list[Aim]:
    """Measure, judge and write; InputError, all else being written, where composed steps fail.

    It `started` by time.monotonic, in an earlier process if one was cut short.
    """
    turns = [found for turn in range(TURNS) if (found := stages.known(turn_name(turn))) is not None]
    cuts = [found.cut for found in turns if found.cut]
    measured = len(turns) > len(cuts) or len(cuts) == TURNS  # by an earlier process, as far as it goes
    interrupted = False
    scope = scope_of(models, "cuda", [1], "bf16", "bf16", (None, None, None))
    device = open_device("cuda", None, "bf16", 1, step_bytes(scope), attention_shapes(scope))
    try:
        steps, replayed = replayed_steps(scope, None, None, seed)
        plan = plan_of(scope, steps, seed, device.host_copies)
        print(f"{len(plan):,} points planned; {time.monotonic() - started:.0f} s to start", flush=True)
        note = f"held-out points from {len(steps):,} steps of {replayed}, seed {seed}"
        profile_at = out / "profile"
        if measured:
            profile = read_operator_profile(profile_at)
        else:
            turn = turn_name(len(cuts))
            stages.under_way(turn, POINT_S)
            try:
                outcome = measured_profile(
                    device,
                    plan,
                    max(0.0, budget_s - (time.monotonic() - started if cuts else 0.0)),
                    profile_at,
                    seed=seed + len(cuts),  # of the order: what hung comes later, or never
                    resume=profile_at.exists(),
                    notes=(note,),
                    on_progress=said_to(stages, turn),
                )
            except RuntimeError as error:
                # after a kernel's illegal access no call works in this process: another goes on with what was kept
                print(f"the device is lost: {' '.join(str(error).split())[:200]}", file=sys.stderr, flush=True)
                raise SystemExit(LOST) from None
            stages.over(turn)
            profile, interrupted = outcome.profile, outcome.measurement.interrupted
    finally:
        device.close()
    if not profile.tables:
        raise InputError(f"--budget {budget_s:.0f}s: nothing was measured; give more, or see why above")
    # what is measured already is not lost with the device
    write_report(out, profile, ([], []), time.monotonic() - started, cuts)
    if interrupted:
        raise KeyboardInterrupt
    failure = ""
    rows: list[Row] = []
    try:
        chosen = chosen_steps(steps, COMPOSED_STEPS, seed)
        rows, failure = stages.run("composed steps", POINT_S, partial(composed_steps, profile, scope, chosen))
    except Exception as error:  # a decoder that does not fit, or whatever torch may raise: the profile is written
        failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    aims = write_report(
        out, profile, ([row[0] for row in rows], [row[1] for row in rows]), time.monotonic() - started, cuts
    )
    print((out / "report.md").read_text(encoding="utf-8"))
    if failure:
        raise InputError(f"composed steps: {failure}; {out} has the profile and the report without the rest")
    return aims


def turn_name(turn: int) -> str:
    """Of a stage."""
    return f"measurement {turn + 1}"


def said_to(stages: Stages, turn: str) -> Callable[[Progress], None]:
    """Say how far the measurement is, to who watches it once a second at most."""
    last_s = 0.0

    def told(now: Progress) -> None:
        nonlocal last_s
        say(now)
        if time.monotonic() - last_s > 1.0:
            last_s = time.monotonic()
            stages.under_way(turn, POINT_S)

    return told


def write_report(
    out: Path,
    profile: OperatorProfile,
    composed: tuple[list[float], list[float]],
    wall_s: float,
    cuts: Sequence[str] = (),
) -> list[Aim]:
    """Judge the profile, and the composed steps if there are any; writes report.md and report.json."""
    error = composed_error(*composed) if composed[0] else None
    aims = [*operator_aims(profile), *composed_aims(error)]
    tables = table_summaries(profile)
    (out / "report.md").write_text(report(profile, tables, aims, wall_s, cuts), encoding="utf-8")
    tree = {
        "aims": [aim._asdict() | {"verdict": aim.verdict} for aim in aims],
        "composed": None if error is None else error._asdict(),
        "composed_steps_ns": {"predicted": composed[0], "measured": composed[1]},
        "tables": [table._asdict() for table in tables],
    }
    (out / "report.json").write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    return aims


def say(now: Progress) -> None:
    """A line every hundred points."""
    if now.done % 100 == 0:
        print(f"{now.stage}: {now.done:,} of {now.total:,}", flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "results")))
    parser.add_argument("--budget", default="380s", help="of the measurement; all else takes about two minutes")
    parser.add_argument("--model", action="append", help=f"repeat for more; default {' and '.join(MODELS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watched-since", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    log = given.out / "stages.jsonl"
    try:
        require_cuda()
    except InputError as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 1
    try:
        if given.watched_since is None:
            since = ["--watched-since", str(time.monotonic())]
            return watch([sys.executable, __file__, *sys.argv[1:], *since], log, between_s=START_S)
        given.out.mkdir(parents=True, exist_ok=True)
        budget_s = parse_seconds(given.budget)
        run(given.out, given.model or MODELS, budget_s, given.seed, given.watched_since, Stages(log))
    except InputError as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"calibrate: interrupted; {given.out} has what was measured, the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
