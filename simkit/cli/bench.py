"""`simkit bench`: the speed of this install."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from simkit.cli import options
from simkit.cli.console import answers, emit_json, progress


def bench(
    scale: Annotated[float, typer.Option(min=0.001, max=100.0, help="Factor on the requests of each case.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="The median of so many is printed.")] = 5,
    trace: Annotated[
        list[Path] | None, typer.Option(help="Replay these files too, at the knee; repeat for more.")
    ] = None,
    trace_format: options.Format = None,
    json: options.Json = False,
) -> None:
    """Requests and steps simulated per CPU second, compiled, and at a small size uncompiled for comparison."""
    from simkit.plan.speed import CASES, measure_apart, trace_cases
    from simkit.plan.uncompiled import uncompiled_speed

    cases = [*CASES, *(case for path in trace or [] for case in trace_cases(path, trace_format))]
    speeds = []
    with progress("cases", len(cases) + 1) as on_progress:
        for case in cases:
            sized = replace(case, requests=max(50, round(case.requests * scale)))
            speeds.append(measure_apart(sized, repeats))
            on_progress(len(speeds))
        speeds.append(uncompiled_speed())
    if json:
        emit_json([asdict(speed) for speed in speeds])
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("case", "requests", "requests/CPU s", "slowest", "fastest", "steps/CPU s", "peak MB"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for speed in speeds:
        table.add_row(
            speed.case,
            f"{speed.requests:,}",
            f"{speed.requests_per_cpu_second:,.0f}",
            f"{speed.slowest_requests_per_cpu_second:,.0f}",
            f"{speed.fastest_requests_per_cpu_second:,.0f}",
            f"{speed.steps_per_cpu_second:,.0f}",
            f"{speed.peak_rss_mb:,.0f}",
        )
    answers.print(table)
