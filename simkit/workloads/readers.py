"""Reading a trace file of any known format into a `Workload`."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from simkit.errors import InputError, suggestion
from simkit.workloads.agents import is_agent_session, read_agent_sessions
from simkit.workloads.arrivals import ArrivalSpec, arrivals_us
from simkit.workloads.cells import Ragged
from simkit.workloads.csv_lines import CsvLines, clipped, split
from simkit.workloads.format import Format, integers
from simkit.workloads.formats import azure, bailian, burstgpt, mooncake, simkit_trace, vidur
from simkit.workloads.header import TraceHeader, header_of
from simkit.workloads.json_lines import JsonLines, parsed
from simkit.workloads.session_files import may_hold_sessions
from simkit.workloads.source import Chunk, line_chunks
from simkit.workloads.streams import stream
from simkit.workloads.table import BadRowError, Table, read_table, taken
from simkit.workloads.ticks import tick_of
from simkit.workloads.transform import spread_ticks as spread_over_ticks
from simkit.workloads.workload import I32, I64, ExtraColumn, Prefixes, Workload

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        simkit_trace.FORMAT,
        azure.FORMAT,
        burstgpt.FORMAT,
        mooncake.FORMAT,
        bailian.FORMAT,
        vidur.FORMAT,
    )
}

AGENTS = "claude-code"  # simkit.workloads.agents

ENGINE_ROLES = {"request_id", "arrival_us", "prompt_tokens", "output_tokens", "hash_ids", "priority", "session_id"}
"""Columns that a workload has a place for; all others are kept as `extra`."""


def read_workload(
    path: Path | str,
    format: str | Format | None = None,
    *,
    sort: bool = False,
    skip_bad_rows: bool = False,
    spread_ticks: bool = False,
    seed: int = 0,
    arrivals: ArrivalSpec | None = None,
    lengths_only: bool = False,
) -> Workload:
    """The requests of a trace file, plain or packed with gzip or zstd.

    `format` is or names one of `FORMATS`; None recognises it by the first line. `sort` puts rows in order of arrival,
    stably; `skip_bad_rows` counts them by reason in `dropped_rows`; `spread_ticks` moves arrivals that were rounded to
    coarse ticks uniformly within their tick, seeded with `seed`; `arrivals` draws times, with that seed, in place of
    the file's, if it has any; `lengths_only` does without times, all arrivals are then 0. Agents' sessions, which are
    trees and no lines, are a folder of .json files, a tar of them, or one; `arrivals` are then when sessions start.
    Raises InputError, one line with file, line, field and fix, for anything that cannot be taken.
    """
    path = Path(path)
    if format == AGENTS or (format is None and (may_hold_sessions(path) or is_agent_session(path))):
        workload = read_agent_sessions(path, starts=arrivals, seed=seed)
        return spread_over_ticks(workload, seed) if spread_ticks else workload
    if isinstance(format, str) and format not in FORMATS:
        raise InputError(f"format {format!r} is not known; {suggestion(format, [*FORMATS, AGENTS])}")
    opened = _open(path, format)
    table = read_table(
        str(path),
        opened.chunks,
        opened.lines,
        [*opened.format.rules, *opened.format.header_rules(opened.header)],
        skip=skip_bad_rows,
    )
    if len(table.line) == 0:
        raise InputError(f"{path}: {_why_empty(table)}")
    given = None
    if lengths_only:
        given = np.zeros(len(table.line), dtype=np.int64)
    elif arrivals is not None:
        given = arrivals_us(arrivals, stream(seed), len(table.line))
    workload = _assembled(path, opened, table, given, sort=sort)
    if arrivals is not None:
        record = f"arrivals({arrivals.kind}, {arrivals.rate_per_s:g}/s, seed={seed})"
        workload = replace(workload, transforms=(*workload.transforms, record))
    return spread_over_ticks(workload, seed) if spread_ticks else workload


SCHEDULED_BY = {"tenant_id", "client_id", "deadline_us", "ttft_slo_us"}
"""Columns beyond a workload's own that orderings of the queue look at (simkit.engine.claims)."""
REPLAYED_BY = {"parent_id", "think_us"}
"""Those that closed replay of sessions goes by (simkit.cluster.sessions)."""


@dataclass(frozen=True)
class _Opened:
    """A file whose first line was read."""

    format: Format
    lines: CsvLines | JsonLines
    header: TraceHeader
    chunks: Iterator[Chunk]  # from the first row on


def _open(path: Path, given: str | Format | None) -> _Opened:
    chunks = line_chunks(path)
    first = next(chunks, None)
    if first is None or not first.text.strip():
        raise InputError(f"{path}: is empty; a trace has at least one request")
    top, _, below = first.text.partition("\n")
    top = top.rstrip("\r")
    format = FORMATS[given] if isinstance(given, str) else given or _recognised(path, top)
    if format.syntax == "csv":
        try:
            lines: CsvLines | JsonLines = CsvLines(str(path), top, format.fields, format.name)
        except csv.Error as error:
            raise InputError(f"{path}:1: {clipped(top)}: is not a CSV header ({error})") from None
        return _Opened(format, lines, TraceHeader(), _after_header(below, chunks))
    if not format.own_header:
        return _Opened(format, JsonLines(format.fields), TraceHeader(), chain([first], chunks))
    try:
        found = parsed(top)
    except BadRowError as bad:
        raise InputError(f"{path}:1: {bad.message}") from None
    header = header_of(found, f"{path}:1")
    return _Opened(format, JsonLines(format.fields, closed=True), header, _after_header(below, chunks))


def _after_header(below: str, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    return chain([Chunk(2, below)] if below else [], chunks)


def _recognised(path: Path, first_line: str) -> Format:
    """The format whose names the first line has, or has most of; then the reader says which one is missing."""
    names, syntax = _names(first_line)
    scored = []
    for format in FORMATS.values():
        marks = format.marks()
        if format.syntax == syntax:
            found = len(marks & names)
            scored.append((found / len(marks), found, format))
    best = max(scored, key=lambda s: s[:2], default=None)
    if best is None or best[0] < 0.5:
        known = ", ".join(FORMATS)
        own = "" if syntax != "csv" else ", or its columns with --columns arrival=NAME,prompt=NAME,output=NAME"
        raise InputError(
            f"{path}:1: {clipped(first_line)}: is not the first line of a known format; name it with --format ({known})"
            + own
        )
    return best[2]


def _names(first_line: str) -> tuple[set[str], str]:
    if first_line.lstrip().startswith("{"):
        try:
            return set(json.loads(first_line)), "jsonl"
        except (ValueError, RecursionError):
            return set(), "jsonl"
    try:
        return set(split(first_line)), "csv"
    except csv.Error:
        return set(), "csv"


def _why_empty(table: Table) -> str:
    if not table.dropped:
        return "holds no request; a trace has at least one row"
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(table.dropped.items()))
    first = f"; the first: line {table.first_error}" if table.first_error else ""
    return f"holds no request that can be simulated; left out: {reasons}{first}"


def _assembled(path: Path, opened: _Opened, table: Table, given_us: I64 | None, *, sort: bool) -> Workload:
    notes, transforms = [], list(opened.header.transform)
    arrival_us = _arrival(path, opened.format, table) if given_us is None else given_us
    if (np.diff(arrival_us) < 0).any():
        if not sort:
            raise InputError(_out_of_order(path, table, arrival_us))
        order = np.argsort(arrival_us, kind="stable")
        arrival_us = arrival_us[order]
        table = Table(table.line[order], {r: taken(c, order) for r, c in table.columns.items()}, table.dropped)
        transforms.append("sort")
    parts = opened.format.finish(table, opened.header)
    tick = 1 if given_us is not None else _tick(opened.header, arrival_us)
    if tick > 1:
        notes.append(f"arrivals come in ticks of {tick / 1e6:g} s; --spread-ticks moves them within their tick")
    extra = _extra(table)
    unused = sorted(set(extra) - SCHEDULED_BY - REPLAYED_BY)
    if unused:
        notes.append("columns kept that the engine does not use: " + ", ".join(unused))
    if used := sorted(set(extra) & REPLAYED_BY):
        notes.append("columns that closed replay of sessions alone uses: " + ", ".join(used))
    if opened.lines.not_read:
        notes.append("columns not read: " + ", ".join(opened.lines.not_read))
    if opened.header.truncated:
        notes.append("the header says that the trace is truncated")
    dropped = dict(opened.header.dropped_rows)
    for reason, count in table.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    return Workload(
        name=opened.header.name or _plain_name(path),
        arrival_us=arrival_us,
        prompt_tokens=integers(table.columns, "prompt_tokens").astype(np.int32),
        output_tokens=integers(table.columns, "output_tokens").astype(np.int32),
        request_id=_request_ids(path, opened.format, table),
        priority=_priority(table),
        session_id=parts.session_id,
        prefixes=_known(parts.prefixes),
        tick_us=tick,
        source=opened.header.source or str(path),
        transforms=tuple(transforms),
        dropped_rows=dropped,
        extra=extra,
        provenance=opened.header.provenance(),
        notes=(*notes, *parts.notes),
    )


def _arrival(path: Path, format: Format, table: Table) -> I64:
    if "arrival_us" not in table.columns:
        raise InputError(f"{path}: has no arrival times; generate them, for instance with --arrivals poisson --rate 1")
    arrival_us = integers(table.columns, "arrival_us")
    return arrival_us - arrival_us.min() if format.clock == "wall" else arrival_us


def _tick(header: TraceHeader, arrival_us: I64) -> int:
    return header.tick_us if "tick_us" in header.model_fields_set else tick_of(arrival_us)


def _out_of_order(path: Path, table: Table, arrival_us: I64) -> str:
    row = int(np.flatnonzero(np.diff(arrival_us) < 0)[0]) + 1
    early = (arrival_us[row - 1] - arrival_us[row]) / 1e6
    return (
        f"{path}:{table.line[row]}: arrives {early:g} s before the request on line {table.line[row - 1]}; "
        "a trace is in order of arrival: pass --sort to have it sorted"
    )


def _request_ids(path: Path, format: Format, table: Table) -> tuple[str, ...] | None:
    """The ids; None when they are the row numbers, which is what None stands for."""
    column = table.columns.get("request_id")
    if column is None or isinstance(column, Ragged):
        return None
    ids = tuple(column.tolist())
    if len(set(ids)) < len(ids):
        if not format.own_header:  # its publisher's ids are not ours to judge; the rows are told apart by number
            return None
        first: dict[str, int] = {}
        for row, name in enumerate(ids):
            if name in first:
                raise InputError(
                    f"{path}:{table.line[row]}: request_id={clipped(name)}: stands on line {table.line[first[name]]} "
                    "too; every request needs its own"
                )
            first[name] = row
    return None if ids == tuple(map(str, range(len(ids)))) else ids


def _priority(table: Table) -> I32 | None:
    column = table.columns.get("priority")
    if column is None or isinstance(column, Ragged):
        return None
    return np.array([0 if value is None else value for value in column.tolist()], dtype=np.int32)


def _known(prefixes: Prefixes | None) -> Prefixes | None:
    return prefixes if prefixes is not None and len(prefixes.ids) else None


def _extra(table: Table) -> dict[str, ExtraColumn]:
    kept = {}
    for role, column in table.columns.items():
        if role not in ENGINE_ROLES and not isinstance(column, Ragged):
            values = column.tolist()
            if any(value is not None for value in values):
                kept[role] = tuple(values)
    return kept


def _plain_name(path: Path) -> str:
    name = path.name
    for ending in (".gz", ".zst", ".jsonl", ".json", ".csv", ".trace"):
        name = name.removesuffix(ending)
    return name or path.name
