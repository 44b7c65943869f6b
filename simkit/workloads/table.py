"""Rows of a trace file as columns: quickly where all is well, row by row where a line has to be named.

A chunk of lines is first converted column by column. If anything in it is odd, the same chunk is gone through row by
row, which either finds that the fast way was too shy, or knows the line, the value and what is wrong with it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simkit.errors import InputError
from simkit.workloads.cells import Cell, Column, Ragged
from simkit.workloads.source import Chunk
from simkit.workloads.workload import I64

Columns = dict[str, Column]
"""By role: the workload's name of the column, not the file's. An optional column absent from all rows is left out."""


@dataclass(frozen=True)
class Field:
    """A column of a format."""

    name: str  # in the file
    role: str  # in the workload
    cell: Cell
    required: bool = True
    whole: bool = False  # a file may lack the column, but where it is, every row has a value


class BadRowError(Exception):
    """A row that cannot be taken: the reason it is counted under and what to say of it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class Rule:
    """What a row's values must satisfy together."""

    reason: str  # the row is counted under
    broken: Callable[[Columns], NDArray[np.bool_]]  # [rows] which rows break it
    say: Callable[[Columns, int], str] = lambda columns, row: ""  # `field=value: what is wrong; fix`
    leave_out: bool = False  # not an error: the trace itself says that there is nothing to simulate


class Syntax(Protocol):
    """How lines hold fields: CSV or JSON."""

    fields: tuple[Field, ...]

    def columns(self, text: str) -> tuple[int, Columns] | None:
        """Number of rows and their columns, or None when some line needs a closer look."""

    def row(self, line: str) -> dict[str, object] | None:
        """One line's values by role, absent ones left out; None for a blank line. Raises BadRowError."""


@dataclass
class Table:
    """What was read of a file."""

    line: I64  # [rows] where each row stands in the file
    columns: Columns
    dropped: Counter[str] = field(default_factory=Counter)
    first_error: str = ""  # the first row that `skip` left out


def read_table(place: str, chunks: Iterator[Chunk], syntax: Syntax, rules: Sequence[Rule], *, skip: bool) -> Table:
    """All rows of `chunks`; with `skip`, bad rows are counted by reason instead of raising InputError."""
    parts: list[Table] = []
    for chunk in chunks:
        fast = syntax.columns(chunk.text)
        if fast is not None:
            rows, columns = fast
            table = Table(np.arange(chunk.first_line, chunk.first_line + rows, dtype=np.int64), columns)
            table, message = _ruled(table, rules, skip=False)
        if fast is None or message:
            table, message = _row_by_row(chunk, syntax, rules, skip=skip)
        if message:
            raise InputError(f"{place}:{message}")
        parts.append(table)
    return joined(parts, syntax.fields)


def _row_by_row(chunk: Chunk, syntax: Syntax, rules: Sequence[Rule], *, skip: bool) -> tuple[Table, str]:
    """The chunk's good rows, and the message about its first bad one unless that is to be skipped."""
    lines: list[int] = []
    rows: list[dict[str, object]] = []
    dropped: Counter[str] = Counter()
    message = first_error = ""
    for number, text in enumerate(chunk.text.split("\n"), chunk.first_line):
        try:
            row = syntax.row(text)
        except BadRowError as bad:
            first_error = first_error or f"{number}: {bad.message}"
            if not skip:
                message = first_error
                break
            dropped[bad.reason] += 1
            continue
        if row is not None:
            lines.append(number)
            rows.append(row)
    columns = {f.role: _packed(f, rows) for f in syntax.fields if f.required or any(f.role in row for row in rows)}
    table = Table(np.array(lines, dtype=np.int64), columns, dropped, first_error if skip else "")
    # rules first: what they find stands above the line at which reading stopped
    table, broken = _ruled(table, rules, skip=skip)
    return table, broken or message


def _packed(f: Field, rows: list[dict[str, object]]) -> Column:
    values = [row.get(f.role) for row in rows]
    if f.required or (f.role in LISTS):
        return f.cell.pack([[] if v is None else v for v in values])  # type: ignore[misc]
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


LISTS = ("hash_ids",)  # roles whose missing value is an empty list


def _ruled(table: Table, rules: Sequence[Rule], *, skip: bool) -> tuple[Table, str]:
    """The table without the rows that break a rule; a message when one of them is an error and not skipped."""
    dropped = Counter(table.dropped)
    first_error = table.first_error
    errors: list[tuple[int, str]] = []
    for rule in rules:
        if len(table.line) == 0:
            break
        broken = rule.broken(table.columns)
        if not broken.any():
            continue
        if not rule.leave_out:
            row = int(np.flatnonzero(broken)[0])
            errors.append((int(table.line[row]), f"{table.line[row]}: {rule.say(table.columns, row)}"))
        dropped[rule.reason] += int(broken.sum())
        table = Table(table.line[~broken], {role: taken(c, ~broken) for role, c in table.columns.items()})
    message = min(errors)[1] if errors else ""
    first_error = first_error or (message if skip else "")
    return Table(table.line, table.columns, dropped, first_error), "" if skip else message


def taken(column: Column, rows: NDArray[np.bool_] | I64) -> Column:
    """The rows of a column chosen by a mask or by their numbers, in that order."""
    if not isinstance(column, Ragged):
        return column[rows]
    rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    start = np.concatenate(([0], np.cumsum(column.length)))
    length = column.length[rows]
    return Ragged(length, column.flat[ranges(start[rows], length)])


def ranges(start: NDArray[np.integer], length: NDArray[np.integer]) -> I64:
    """start[0], start[0] + 1, .. length[0] numbers, then those from start[1], and so on."""
    total = int(length.sum())
    ends = np.cumsum(length)
    return np.asarray(np.arange(total, dtype=np.int64) + np.repeat(start - (ends - length), length))


def joined(parts: Sequence[Table], fields: Sequence[Field]) -> Table:
    """Tables one below the other; where one lacks an optional column, its rows have None there."""
    roles = [f for f in fields if any(f.role in part.columns for part in parts)]
    columns = {f.role: _stacked(f, parts) for f in roles}
    lines = [part.line for part in parts]
    dropped: Counter[str] = sum((part.dropped for part in parts), Counter())
    error = next((part.first_error for part in parts if part.first_error), "")
    return Table(np.concatenate(lines) if lines else np.empty(0, np.int64), columns, dropped, error)


def _stacked(f: Field, parts: Sequence[Table]) -> Column:
    pieces = [part.columns[f.role] if f.role in part.columns else _absent(f, len(part.line)) for part in parts]
    ragged = [piece for piece in pieces if isinstance(piece, Ragged)]
    if ragged:
        return Ragged(np.concatenate([r.length for r in ragged]), np.concatenate([r.flat for r in ragged]))
    return np.concatenate([piece for piece in pieces if not isinstance(piece, Ragged)])


def _absent(f: Field, rows: int) -> Column:
    if f.role in LISTS:
        return Ragged(np.zeros(rows, np.int64), np.empty(0, np.int64))
    return np.full(rows, None, dtype=object)
