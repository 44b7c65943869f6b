"""`simkit context`: maximum context length against rate and KV precision, in GPUs, latencies and money."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from simkit.cli import options
from simkit.cli.console import emit_json, nothing_yet, people, progress, to_json, waiting_for, whole_or_nothing
from simkit.errors import InputError, TargetNotMetError

if TYPE_CHECKING:
    from simkit.cli.context_config import ContextConfig
    from simkit.plan.context_cells import Cell, ContextQuestion

DEFAULT_OUT = Path("simkit-context")


def context(
    config: options.ConfigPath = None,
    model: options.Model = None,
    device: options.Device = None,
    tp: options.Tensor = None,
    trace: options.Trace = None,
    trace_format: options.Format = None,
    columns: options.Columns = None,
    time_unit: options.TimeUnit = None,
    preset: options.Preset = None,
    generate: options.Generate = None,
    arrivals: options.Arrivals = None,
    requests: options.Requests = None,
    profile: options.Profile = None,
    slo: options.Slo = None,
    seed: options.Seed = None,
    settings: options.Set = None,
    lengths: str | None = typer.Option(None, help="Maximum contexts in tokens, 8192,32768."),
    rates: str | None = typer.Option(None, help="Requests a second of all replicas, 1,2,5."),
    kv: str | None = typer.Option(None, help="KV precisions, bf16,fp8."),
    long_share: float | None = typer.Option(None, help="Share of the requests that use the context to its end."),
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """What a maximum context needs and costs: admitted requests, preemptions, TTFT, TPOT, GPUs, price.

    Exit code 3 if no length holds at any rate.
    """
    with nothing_yet():
        from simkit.cli.config import load_workload, read_config_as
        from simkit.cli.context_config import ContextConfig, context_question
        from simkit.engine.warm_up import warm_up
        from simkit.metrics.slo import promise
        from simkit.plan.context_cells import cells
        from simkit.report.directory import prepare

        wanted = options.overrides(
            model, device, tp, trace, trace_format, preset, generate, arrivals, None, requests, None,
            False, False, False, profile, slo, seed, settings,
        )  # fmt: skip
        wanted += options.own_columns(columns, time_unit)
        wanted += [
            (f"context.{name}", value)
            for name, value in (
                ("lengths", _numbers("lengths", lengths, int)),
                ("rates", _numbers("rates", rates, float)),
                ("kv", None if kv is None else [name.strip() for name in kv.split(",")]),
                ("long_share", long_share),
            )
            if value is not None
        ]
        resolved = read_config_as(ContextConfig, config, wanted)
        if not promise(resolved.slo):
            raise InputError("slo: no target given; for instance --slo ttft_p99=5 --slo tpot_p99=0.05 (seconds)")
        folder = out if out is not None or json else DEFAULT_OUT
        if folder is not None:
            prepare(folder)
        with waiting_for("reading the workload"):
            workload = load_workload(resolved.workload, resolved.seed)
        with waiting_for("compiling the engine, which is kept for later runs"):
            warm_up(resolved.deployment.engine.discipline)
        question = context_question(resolved, workload)
    with whole_or_nothing(), progress("cells", len(list(question.places()))) as on_progress:
        found = cells(question, on_progress)
    _present(resolved, question, found, folder, json)


def _numbers(name: str, given: str | None, kind: type[int] | type[float]) -> list[float] | None:
    if given is None:
        return None
    try:
        return [kind(part) for part in given.split(",")]
    except ValueError:
        raise InputError(f"--{name} {given}: numbers between commas are wanted, for instance 8192,32768") from None


def _present(
    config: "ContextConfig", question: "ContextQuestion", found: "list[Cell]", folder: Path | None, json: bool
) -> None:
    from simkit.plan.context_words import context_tree, context_verdict
    from simkit.report.context_page import context_notes, context_page, context_table
    from simkit.report.directory import write_atomically
    from simkit.versions import versions

    lines = context_verdict(question, found)
    tree = {
        "verdict": lines,
        **context_tree(question, found),
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": versions(),
    }
    if folder is not None:
        write_atomically(folder / "context.json", (to_json(tree) + "\n").encode())
        write_atomically(folder / "context.html", context_page(question, found, lines, tree).encode())
    if json:
        emit_json(tree)
    else:
        people.print(context_table(found))
        for line in context_notes(found):
            people.print(line, markup=False, highlight=False)
        for number, line in enumerate(lines):
            people.print(line, markup=False, style="bold" if number == 0 else "")
        if folder is not None:
            people.print(f"report: {folder / 'context.html'}", markup=False)
    if all(cell.filled is None for cell in found):
        raise TargetNotMetError(f"no length holds; at {found[0].max_context} tokens: {found[0].reason}")
