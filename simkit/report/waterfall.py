"""Where the slowest requests' time went: a bar a request, split by what it waited for."""

import numpy as np

from simkit.metrics.latency import Latencies, request_label
from simkit.metrics.result import F64, I64, WATERFALL, RequestColumns
from simkit.report.markup import Cell, table, text
from simkit.report.palette import PART_MEANING, PART_NAME, PARTS
from simkit.report.units import count, seconds, share

SLOWEST = 12  # bars a chart: what one reads without scrolling


def legend() -> str:
    """The colours of the parts; page.js adds boxes that hide a part."""
    items = "".join(
        f'<li data-part="{part}"><span class="swatch {part}"></span><b>{name}</b> {text(PART_MEANING[part])}</li>'
        for part, name in PART_NAME.items()
    )
    return f'<ul class="legend">{items}</ul>'


def chart(title: str, requests: RequestColumns, rows: I64, value_s: dict[int, float], name: str) -> str:
    """Stacked bars of the requests `rows`, all on the scale of the longest E2E; `value_s` is printed as `name`."""
    parts_ns = _parts(requests, rows)
    longest_ns = max(1, int(parts_ns.sum(axis=1).max(initial=0)))
    bars = []
    for row, parts in zip(rows.tolist(), parts_ns.tolist(), strict=True):
        label = request_label(requests, row)
        named = list(zip(PARTS, parts, strict=True))
        spoken = ", ".join(f"{PART_NAME[part]} {seconds(ns / 1e9)}" for part, ns in named if ns)
        spans = "".join(
            f'<span class="{part}" style="width:{100 * ns / longest_ns:.3f}%"'
            f' title="{PART_NAME[part]} {seconds(ns / 1e9)}"></span>'
            for part, ns in named
            if ns
        )
        total = seconds(sum(parts) / 1e9)
        spoken = text(f"request {short_id(label, 40)}: E2E {total}: {spoken}", 400)
        bars.append(
            f'<div class="bar-row"><span class="bar-name" title="{text(label, 200)}">{text(short_id(label, 13))}</span>'
            f'<span class="bar" role="img" aria-label="{spoken}">{spans}</span>'
            f'<span class="bar-value">{name} {seconds(value_s[row])}</span></div>'
        )
    scale = f'<p class="note">Bars are E2E, the full width {seconds(longest_ns / 1e9)}.</p>'
    return f'<div class="waterfall"><h3>{text(title)}</h3>{scale}\n' + "\n".join(bars) + "</div>"


def request_table(requests: RequestColumns, latencies: Latencies, rows: I64) -> str:
    """The same requests in numbers, sortable."""
    by_row = {int(row): i for i, row in enumerate(latencies.row)}
    latency = ("TTFT", "TPOT", "E2E", *PART_NAME.values())
    head = ("request", "arrival", "prompt", "cached", "output", *latency, "preemptions")
    body = [_table_row(requests, latencies, row, by_row[row]) for row in rows.tolist()]
    return table("Slowest requests by E2E and by TTFT", head, body, "numbers wide", sortable=True)


def short_id(label: str, length: int) -> str:
    """An id cut in its middle to `length` characters: ids of one source differ at their ends.

    >>> short_id("chatcmpl-001224", 12)
    'chat…-001224'
    """
    head = (length - 1) // 3 + 1
    return label if len(label) <= length else f"{label[:head]}…{label[head + 1 - length :]}"


def _table_row(requests: RequestColumns, latencies: Latencies, row: int, i: int) -> list[Cell | str]:
    e2e_s = float(latencies.e2e_s[i])
    label = request_label(requests, row)
    cells: list[Cell | str] = [Cell(short_id(label, 20), float(row) if requests.request_id is None else None)]
    cells.append(_time(float(requests.arrival_ns[row]) / 1e9))
    for column in (requests.prompt_tokens, requests.hit_tokens, requests.generated_tokens):
        cells.append(Cell(count(float(column[row])), float(column[row])))
    cells += [_time(float(values[i])) for values in (latencies.ttft_s, latencies.tpot_s, latencies.e2e_s)]
    for name in WATERFALL:
        part = int(getattr(requests, name)[row]) / 1e9
        cells.append(Cell(share(part / e2e_s) if e2e_s > 0 else seconds(part), part))
    cells.append(Cell(count(float(requests.preemptions[row])), float(requests.preemptions[row])))
    return cells


def _time(value_s: float) -> Cell:
    return Cell(seconds(value_s), value_s)


def _parts(requests: RequestColumns, rows: I64) -> I64:
    """i64[rows, parts] ns, in the order of `WATERFALL` (and so of `PARTS`)."""
    return np.stack([getattr(requests, name)[rows] for name in WATERFALL], axis=1)


def values_of(latencies: Latencies, values: F64) -> dict[int, float]:
    """A latency by row."""
    return dict(zip(latencies.row.tolist(), values.tolist(), strict=True))
