"""Lines of comma-separated values as columns: pandas where the chunk is regular, `csv` for single lines."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkit.errors import InputError, suggestion
from simkit.workloads.cells import DECIMAL, Column, Integer, number
from simkit.workloads.table import BadRowError, Columns, Field

F64 = NDArray[np.float64]


class CsvLines:
    """The rows below a header line."""

    def __init__(self, place: str, header: str, fields: Sequence[Field], format_name: str) -> None:
        """Raises InputError when `header` lacks a required column or names one twice."""
        self.header = split(header)
        for f in fields:
            if f.name not in self.header:
                if not f.required:
                    continue
                hint = suggestion(f.name, self.header)
                hint = hint if hint.startswith("did") else "the header has " + ", ".join(self.header)
                raise InputError(f"{place}:1: column {f.name!r} of format {format_name} is missing; {shortened(hint)}")
            if self.header.count(f.name) > 1:
                raise InputError(f"{place}:1: column {f.name!r} stands twice in the header; rename one")
        there = [f for f in fields if f.name in self.header]
        self.fields = tuple(replace(f, required=True) if f.whole else f for f in there)
        self.at = {f.name: self.header.index(f.name) for f in self.fields}
        self.not_read = tuple(name for name in self.header if name not in self.at)

    def columns(self, text: str) -> tuple[int, Columns] | None:
        """See `Syntax.columns`."""
        rows = text.count("\n") + (not text.endswith("\n"))
        commas = text.count(",")
        width = len(self.header)
        if '"' in text or commas != rows * (width - 1) or text.startswith("\n"):
            return None
        plain = {self.at[f.name] for f in self.fields if f.required and isinstance(f.cell, Integer)}
        try:
            # without names or usecols pandas raises for a row that is longer than the first, so with the right number
            # of commas in all, each row has its own right number
            frame = pd.read_csv(
                io.StringIO(text),
                header=None,
                dtype={i: object for i in range(width) if i not in plain},
                na_filter=False,
                low_memory=False,
            )
        except (ValueError, OverflowError):  # a ParserError is a ValueError
            return None
        if frame.shape != (rows, width):
            return None
        columns: Columns = {}
        for f in self.fields:
            column = _column(f, frame[self.at[f.name]].to_numpy())
            if column is None:
                return None
            columns[f.role] = column
        return rows, columns

    def row(self, line: str) -> dict[str, object] | None:
        """See `Syntax.row`."""
        if not line.strip():
            return None
        try:
            cells = split(line)
        except csv.Error as error:
            raise BadRowError("malformed", f"{clipped(line)}: is not a CSV row ({error})") from None
        if len(cells) != len(self.header):
            message = f"{clipped(line)}: has {len(cells)} columns, the header {len(self.header)}; mend or drop the row"
            raise BadRowError("malformed", message)
        row: dict[str, object] = {}
        for f in self.fields:
            text = cells[self.at[f.name]]
            if f.required or not missing(text):
                row[f.role] = converted(f, text)
        return row


def decimals(texts: NDArray[np.object_]) -> F64 | None:
    """The numbers that texts spell, or None when some text is not plainly one.

    pandas' own parser of decimals is not used: it may be off in the last bit, by version.
    """
    if not bool(pd.Series(texts).str.fullmatch(DECIMAL).all()):
        return None
    return texts.astype(np.float64)


def missing(text: str) -> bool:
    """Whether a cell of an optional column says nothing; a data frame writes NaN for that."""
    return text.strip().lower() in ("", "nan")


def converted(f: Field, text: str) -> object:
    """The value of one cell's text; raises BadRowError."""
    try:
        return f.cell.one(number(text) if f.cell.numeric else text.strip())
    except ValueError as error:
        raise BadRowError(f.cell.reason, f"{f.name}={clipped(text)}: {error}; mend or drop the row") from None


def _column(f: Field, values: NDArray[np.object_] | NDArray[np.int64]) -> Column | None:
    if not f.required:
        return _optional(f, values.astype(object))
    if f.cell.numeric and not isinstance(f.cell, Integer):
        found = decimals(values.astype(object))
        return None if found is None else f.cell.many(found)
    return f.cell.many(values)


def _optional(f: Field, values: NDArray[np.object_]) -> Column | None:
    codes, different = pd.factorize(values)
    stored = np.empty(len(different), dtype=object)
    try:
        stored[:] = [None if missing(text) else converted(f, text) for text in different]
    except BadRowError:
        return None
    return stored[codes]


def split(line: str) -> list[str]:
    """The cells of one line, without the blanks around them; raises csv.Error."""
    return [cell.strip() for cell in next(csv.reader([line.rstrip("\r\n")], strict=True), [])]


def clipped(value: object) -> str:
    """A value as an error line shows it: quoted, short, on one line."""
    return shortened(repr(value.rstrip("\r\n") if isinstance(value, str) else value))


def shortened(text: str, limit: int = 80) -> str:
    """`text`, or its beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
