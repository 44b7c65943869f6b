"""A context plan as one page with heat maps, and as a table on a terminal."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import yaml
from rich.table import Table
from rich.text import Text

from simkit.plan.context_cells import Cell, ContextQuestion, Filled
from simkit.plan.context_words import lines_of, reasons_of
from simkit.report.figures.plan import heat_map
from simkit.report.html import page
from simkit.report.markup import figures, plain, table, text
from simkit.report.units import MISSING, count, seconds, share

HEAD = (
    "context", "rate", "KV", "way", "GPUs", "fit at once", "running", "preempted", "TTFT p50", "TTFT p99", "TPOT p99",
    "prefill", "USD/h", "USD/k req", "USD/M in", "USD/M out",
)  # fmt: skip
MAPS: tuple[tuple[str, str, Callable[[Filled], float]], ...] = (
    ("GPUs", "gpus", lambda cell: float(cell.gpus)),
    ("USD a thousand requests", "usd", lambda cell: 1000 * cell.usd_per_request),
    ("TTFT p99 of the longest requests, s", "ttft", lambda cell: cell.ttft_p99_s),
    ("Prefill's share of the device time", "prefill", lambda cell: cell.prefill_share),
)


def context_page(
    question: ContextQuestion, found: Sequence[Cell], lines: Sequence[str], tree: Mapping[str, object]
) -> str:
    """The page; the same cells give the same bytes."""
    held = any(cell.filled is not None for cell in found)
    said = "".join(f"<p>{text(line)}</p>" for line in lines[1:])
    tone = "good" if held else "bad"
    top = f'<div class="banner {tone}" role="status"><p class="headline">{text(lines[0])}</p>{said}</div>'
    sections = [
        ("maps", "Length against rate", _maps(question, found)),
        ("cells", "Every cell", _cells(found)),
        ("configuration", "Configuration", _configuration(tree)),
    ]
    title = f"Context plan: {question.deployment.model} on {question.deployment.device}"
    return page(title, top, _lines(found), sections, tree)


def _configuration(tree: Mapping[str, object]) -> str:
    written = yaml.safe_dump(plain(tree.get("config")), sort_keys=False, allow_unicode=True, width=100)
    return f"<pre>{text(written, 200_000)}</pre>"


def _maps(question: ContextQuestion, found: Sequence[Cell]) -> str:
    """One map a figure for each way and KV precision: lengths down, rates across."""
    shown = ""
    for number, (way, kv) in enumerate(dict.fromkeys((cell.way, cell.kv) for cell in found)):
        part = [cell for cell in found if (cell.way, cell.kv) == (way, kv)]
        lengths = sorted({cell.max_context for cell in part})
        rates = sorted({cell.rate_per_s for cell in part})
        svgs = []
        for title, name, value in MAPS:
            grid = np.full((len(lengths), len(rates)), np.nan)
            for cell in part:
                if cell.filled is not None:
                    grid[lengths.index(cell.max_context), rates.index(cell.rate_per_s)] = value(cell.filled)
            rows, columns = [f"{length:,}" for length in lengths], [f"{rate:.3g}" for rate in rates]
            axis = ("maximum context, tokens", "requests/s")
            svgs.append(heat_map(f"{title}: {way}, KV {kv}", rows, columns, grid, *axis, f"context-{name}-{number}"))
        shown += figures(svgs, "A dash: nothing that was allowed holds; the table of cells says why.")
    return shown


def _lines(found: Sequence[Cell]) -> str:
    rows = []
    for line in lines_of(found):
        steps = ", ".join(f"{a:,} to {b:,}: {times:.2f}" for a, b, times in line.doublings) or MISSING
        heavy = MISSING if line.prefill_dominates_from is None else f"{line.prefill_dominates_from:,}"
        rows.append([line.way, line.kv, f"{line.rate_per_s:.3g}", count(line.longest), heavy, steps])
    head = ("way", "KV", "requests/s", "longest that holds", "prefill dominates from", "times the GPU time a request")
    return table("By way, KV precision and rate", head, rows, "numbers")


def _cells(found: Sequence[Cell]) -> str:
    reasons = reasons_of(found)
    said = "".join(f"<p>{text(line)}</p>" for line in context_notes(found))
    return table("Cells", HEAD, [_row(cell, reasons) for cell in found], "numbers wide", sortable=True) + said


def context_notes(found: Sequence[Cell]) -> list[str]:
    """What the numbers beside the dashes of empty cells mean: a line for each different reason."""
    return [f"({number}) {reason}" for number, reason in enumerate(reasons_of(found), start=1)]


def _row(cell: Cell, reasons: Sequence[str]) -> list[str]:
    """`reasons`: all there are; an empty cell has the number of its own."""
    start = [f"{cell.max_context:,}", f"{cell.rate_per_s:.3g}", cell.kv, cell.way]
    f = cell.filled
    if f is None:
        why = f"{MISSING} ({reasons.index(cell.reason) + 1})"
        return [*start, why, f"{cell.fits_at_once:.1f}", *([""] * (len(HEAD) - 6))]
    return [
        *start,
        count(f.gpus),
        f"{cell.fits_at_once:.1f}",
        f"{f.running_mean:.1f}",
        count(f.preemptions),
        seconds(f.ttft_p50_s),
        seconds(f.ttft_p99_s),
        seconds(f.tpot_p99_s),
        share(f.prefill_share),
        f"{f.usd_per_hour:,.2f}",
        f"{1000 * f.usd_per_request:.3g}",
        f"{f.usd_per_million_input:.3g}",
        f"{f.usd_per_million_output:.3g}",
    ]


def context_table(found: Sequence[Cell]) -> Table:
    """The cells on a terminal; the columns that matter most."""
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    wanted = [i for i, name in enumerate(HEAD) if name not in ("TTFT p50", "USD/M in", "USD/M out")]
    for i in wanted:
        shown.add_column(HEAD[i], justify="left" if HEAD[i] in ("KV", "way") else "right", no_wrap=True)
    reasons = reasons_of(found)
    for cell in found:
        row = _row(cell, reasons)
        shown.add_row(*(Text(row[i]) for i in wanted))
    return shown
