"""`simkit calibrate measure` and `check`: profiles from timing kernels on the device at hand."""

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simkit.cli import options
from simkit.cli.console import answers, emit_json, people
from simkit.errors import InputError, PartialResultError, TargetNotMetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from simkit.calibrate.check import Drift
    from simkit.calibrate.measure import Progress
    from simkit.calibrate.measure_run import Outcome
    from simkit.calibrate.points_scope import Scope
    from simkit.engine.emitted_steps import Share

REPLAYED_STEPS = 4000
REPLAYED_REQUESTS = 2000
DEFAULT_PRESET = "azure-conv-2023"
CPU_KV_TOKENS = 65_536

DeviceKind = Annotated[str, typer.Option(help="cuda or cpu.")]
Budget = Annotated[str, typer.Option(help="Time to spend: 480s, 8m.")]
Dtype = Annotated[str, typer.Option(help="Of weights and activations: bf16, on a CPU also fp32.")]
Threads = Annotated[int, typer.Option(min=1, help="Torch threads on a CPU; one is the steadiest.")]


def measure(
    model: Annotated[list[str], typer.Option(help="A model or a config.json; repeat for more.")],
    out: Annotated[Path, typer.Option(help="The profile's directory.")],
    device: DeviceKind = "cuda",
    budget: Budget = "480s",
    tensor: Annotated[
        list[int] | None, typer.Option("--tp", help="Shards to time; repeat for more. Default 1.")
    ] = None,
    dtype: Dtype = "bf16",
    kv_dtype: Annotated[str | None, typer.Option(help="Of the KV cache; default the dtype.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(min=2, help="Largest step, tokens.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="Largest step, requests.")] = None,
    max_model_len: Annotated[int | None, typer.Option(min=64, help="Longest request, tokens.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Held-out points come from its replayed steps.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"The same from a bundled workload; {DEFAULT_PRESET}.")] = None,
    name: Annotated[str | None, typer.Option(help="What the profile calls the device; default found out.")] = None,
    threads: Threads = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the profile in --out.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order and of the points held out.")] = 0,
    json: options.Json = False,
) -> None:
    """Time a model's operators at the sizes that a scheduler emits, and write an operator profile."""
    from simkit.calibrate.measure_device import open_device
    from simkit.calibrate.measure_run import measured_profile, plan_of
    from simkit.calibrate.points_scope import attention_shapes, step_bytes

    seconds = parse_seconds(budget)
    limits = (max_num_batched_tokens, max_num_seqs, max_model_len)
    scope = scope_of(model, device, tensor or [1], dtype, kv_dtype or dtype, limits)
    opened = open_device(device, name, dtype, threads, step_bytes(scope), attention_shapes(scope))
    try:
        steps, replayed = replayed_steps(scope, trace, preset, seed)
        plan = plan_of(scope, steps, seed, opened.host_copies)
        note = f"held-out points from {len(steps):,} steps of {replayed}, seed {seed}"
        with _bar() as on_progress:
            outcome = measured_profile(
                opened, plan, seconds, out, seed=seed, resume=resume, notes=(note,), on_progress=on_progress
            )
    finally:
        opened.close()
    _show_measured(outcome, out, json)
    if outcome.measurement.interrupted:
        raise PartialResultError(f"interrupted: {out} holds what was measured; go on with --resume")


def check(
    profile: Annotated[Path, typer.Argument(help="A measured operator profile.")],
    points: Annotated[int, typer.Option(min=6, help="How many to measure again.")] = 50,
    limit: Annotated[float, typer.Option(min=0.0, help="Drift that still holds, 0.05 is 5 %.")] = 0.05,
    budget: Budget = "60s",
    seed: Annotated[int, typer.Option(help="Of the points drawn.")] = 0,
    json: options.Json = False,
) -> None:
    """Measure some of a profile's points again and say whether it still holds here; exit code 3 if not."""
    from simkit.calibrate.check import check_profile
    from simkit.calibrate.operator_profile import read_operator_profile

    stored = read_operator_profile(profile)
    drift = check_profile(stored, points, parse_seconds(budget), limit, seed, place=str(profile))
    _show_drift(drift, json)
    if not drift.holds:
        raise TargetNotMetError(
            f"{profile} does not hold here: drift {drift.drift:+.1%} [{drift.low:+.1%}, {drift.high:+.1%}], limit "
            f"{limit:.0%}; measure again"
        )


def parse_seconds(text: str) -> float:
    """`480s`, `8m`, `90` in seconds; InputError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m)?", text.strip())
    seconds = float(found[1]) * (60.0 if found[2] == "m" else 1.0) if found else 0.0
    if not 0.0 < seconds <= 86_400.0:
        raise InputError(f"--budget {text}: a time such as 480s or 8m is wanted, up to a day")
    return seconds


def scope_of(
    models: list[str],
    device: str,
    tensor: list[int],
    dtype: str,
    kv_dtype: str,
    limits: tuple[int | None, int | None, int | None],
) -> "Scope":
    """What is to be timed, with limits that suit the kind of device where none are given; raises InputError."""
    from simkit.calibrate.points_scope import Scope
    from simkit.calibrate.profile_tables import DTYPES, KV_DTYPES
    from simkit.models.captures import default_capture_sizes
    from simkit.models.catalog import load_model
    from simkit.models.layout import Layout, check_layout

    for flag, word, known in (("--dtype", dtype, DTYPES), ("--kv-dtype", kv_dtype, KV_DTYPES)):
        if word not in known:
            raise InputError(f"{flag} {word}: is not known; one of {', '.join(known)}")
    architectures = tuple(load_model(name) for name in models)
    for arch in architectures:
        for size in tensor:
            check_layout(arch, Layout(tensor=size))
    gpu = device == "cuda"
    tokens, requests, context = limits
    tokens, requests = tokens or (8192 if gpu else 512), requests or (256 if gpu else 16)
    longest = min(arch.max_context_tokens for arch in architectures)
    context = min(context or (32_768 if gpu else 2048), longest)
    return Scope(
        architectures=architectures,
        max_tokens=tokens,
        max_requests=requests,
        max_context=context,
        kv_tokens=max(context, 600_000 if gpu else CPU_KV_TOKENS),
        tensor=tuple(tensor),
        dtype=dtype,
        kv_dtype=kv_dtype,
        capture_sizes=default_capture_sizes(requests, tokens) if gpu else (),
        fused_rope=gpu,
    )


def replayed_steps(
    scope: "Scope", trace: Path | None, preset: str | None, seed: int
) -> "tuple[list[tuple[Share, ...]], str]":
    """Steps that the engine's scheduler emits for a workload at half of the most requests, and what was replayed.

    The rate is set by Little's law on a made-up step time: which batches form hangs on how many requests are there,
    not on what a step takes.
    """
    from simkit.cli.config import WorkloadSource, load_workload
    from simkit.engine.emitted_steps import emitted_steps
    from simkit.engine.settings import EngineSettings
    from simkit.models.steptables import constant_tables
    from simkit.workloads.transform import fit_context, rate_to

    if trace is not None and preset is not None:
        raise InputError("--trace and --preset: give one of them")
    source = WorkloadSource(
        trace=trace,
        preset=None if trace else preset or DEFAULT_PRESET,
        requests=REPLAYED_REQUESTS,
        arrivals=None if trace else "poisson",
        rate=None if trace else 1.0,
    )
    workload = fit_context(load_workload(source, seed), scope.max_context, "clip")
    step_s = 0.001
    alive_s = step_s * float(workload.output_tokens.mean())
    workload = rate_to(workload, 0.5 * scope.max_requests / alive_s)
    num_blocks = max(scope.kv_tokens, 2 * scope.max_context) // 16 + 2
    limits = EngineSettings(async_scheduling=False, enable_prefix_caching=False).limits(
        num_blocks, scope.max_context, scope.max_tokens, scope.max_requests
    )
    tables = constant_tables(scope.max_tokens, scope.max_requests, step_ns=step_s * 1e9)
    steps = list(emitted_steps(workload, limits, tables, num_blocks, REPLAYED_STEPS))
    return steps, str(trace or f"preset {source.preset}")


@contextmanager
def _bar() -> "Iterator[Callable[[Progress], None]]":
    """A bar on a terminal's stderr, one stage after the other; silent elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=people, transient=True, disable=not people.is_terminal) as bar:
        task = bar.add_task("points", total=None)
        yield lambda now: bar.update(task, description=now.stage, completed=now.done, total=now.total)


def _show_measured(outcome: "Outcome", out: Path, json: bool) -> None:
    from simkit.calibrate.measure_summary import table_summaries

    tables = table_summaries(outcome.profile)
    if json:
        emit_json(
            {
                "profile": str(out),
                "notes": list(outcome.profile.header.notes),
                "interrupted": outcome.measurement.interrupted,
                "tables": [table._asdict() for table in tables],
            }
        )
        return
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("table", "points", "held out", "noise p50", "noise p90"):
        shown.add_column(column, justify="left" if column == "table" else "right")
    for table in tables:
        noise = (f"{table.noise_p50:.1%}", f"{table.noise_p90:.1%}")
        shown.add_row(table.table, f"{table.points:,}", f"{table.held_out:,}", *noise)
    answers.print(shown)
    for note in outcome.profile.header.notes:
        people.print(note, markup=False)
    people.print(f"profile: {out}", markup=False)


def _show_drift(drift: "Drift", json: bool) -> None:
    if json:
        tree = drift._asdict() | {"tables": [table._asdict() for table in drift.tables]}
        tree["worst"] = [
            {"point": str(moved.point), "ratio": moved.ratio, "noise": moved.noise} for moved in drift.worst
        ]
        emit_json(tree)
        return
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("table", "points", "drift", "95 % interval"):
        shown.add_column(column, justify="left" if column == "table" else "right")
    for row in (*drift.tables, ("all", drift.points, drift.drift, drift.low, drift.high)):
        name, points, middle, low, high = row
        shown.add_row(name, f"{points:,}", f"{middle:+.1%}", f"{low:+.1%} to {high:+.1%}")
    answers.print(shown)
    for moved in drift.worst:
        people.print(f"moved most: {moved.point} {moved.ratio - 1.0:+.1%} (noise {moved.noise:.1%})", markup=False)
    verdict = "holds here" if drift.holds else "does not hold here"
    answers.print(f"the profile {verdict}: drift {drift.drift:+.1%}, limit {drift.limit:.0%}", markup=False)
