"""Lines of JSON objects as columns: `json.loads` for each line, then numpy for each column."""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from simkit.errors import suggestion
from simkit.workloads.cells import Column
from simkit.workloads.csv_lines import clipped, shortened
from simkit.workloads.table import LISTS, BadRowError, Columns, Field


class JsonLines:
    """One object a line. Keys that the format does not have are errors when it is `closed`, else noted."""

    def __init__(self, fields: Sequence[Field], *, closed: bool = False) -> None:
        self.fields = tuple(fields)
        self.closed = closed
        self.names = {f.name for f in fields}
        self.seen: set[str] = set()  # keys met so far

    @property
    def not_read(self) -> tuple[str, ...]:
        """Keys met that the format does not have."""
        return tuple(sorted(self.seen - self.names))

    def columns(self, text: str) -> tuple[int, Columns] | None:
        """See `Syntax.columns`."""
        lines = text.replace("\r\n", "\n").split("\n")
        if not lines[-1]:
            lines.pop()
        try:
            values = [exactly(line) for line in lines]
        except (ValueError, RecursionError):
            return None
        rows = [value for value in values if isinstance(value, dict)]
        if not rows or len(rows) < len(values):
            return None
        keys: set[str] = set().union(*rows)
        if self.closed and not keys <= self.names:
            return None
        self.seen |= keys
        columns: Columns = {}
        for f in self.fields:
            if not f.required and f.name not in keys:
                continue
            column = _column(f, [row.get(f.name) for row in rows])
            if column is None:
                return None
            columns[f.role] = column
        return len(rows), columns

    def row(self, line: str) -> dict[str, object] | None:
        """See `Syntax.row`."""
        if not line.strip():
            return None
        found = parsed(line)
        unknown = found.keys() - self.names
        if self.closed and unknown:
            key = min(unknown)
            message = f"{clipped(key)} is not a column of the schema; {suggestion(key, self.names)}"
            raise BadRowError("malformed", message)
        self.seen |= found.keys()
        row: dict[str, object] = {}
        for f in self.fields:
            value = found.get(f.name)
            if f.name not in found and f.required:
                near = suggestion(f.name, found) if found else "the object is empty"
                raise BadRowError("malformed", f"key {f.name!r} is missing; {shortened(near)}")
            if value is None and not f.required:
                continue
            try:
                row[f.role] = f.cell.one(value)
            except ValueError as error:
                raise BadRowError(f.cell.reason, f"{f.name}={clipped(value)}: {error}; mend or drop the row") from None
        return row


_decode = json.JSONDecoder().raw_decode


def exactly(line: str) -> object:
    """The value that a line spells from its first character to its last; half the time of `json.loads`."""
    value, end = _decode(line)
    if end != len(line):
        raise ValueError("more than one value")
    return value


def parsed(line: str) -> dict[str, object]:
    """The object that one line holds; raises BadRowError."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRowError("malformed", f"{clipped(line)}: is not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError):
        raise BadRowError("malformed", f"{clipped(line)}: is not JSON that can be read") from None
    if not isinstance(found, dict):
        raise BadRowError("malformed", f"{clipped(line)}: is not a JSON object; one request a line is wanted")
    return found


def _column(f: Field, values: list[object]) -> Column | None:
    if f.required or None not in values:
        # a column of optional numbers holds Python's, so that None can stand among them
        column = f.cell.many(values)
        return column.astype(object) if isinstance(column, np.ndarray) and not f.required else column
    if f.role in LISTS:
        return f.cell.many([[] if value is None else value for value in values])
    if not set(map(type, values)) <= {int, str, type(None)}:
        return None
    codes, different = pd.factorize(np.array(values, dtype=object), use_na_sentinel=False)
    stored = np.empty(len(different), dtype=object)
    try:
        stored[:] = [None if value is None or value != value else f.cell.one(value) for value in different]
    except ValueError:
        return None
    return stored[codes]
