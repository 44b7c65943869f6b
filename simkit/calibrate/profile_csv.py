"""One table of an operator profile as CSV, and back, every value checked."""

import gzip
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.profile_tables import LONGEST_NS, MOST, MOST_ROWS, TIMING, Column, absent, columns
from simkit.errors import InputError, suggestion

if TYPE_CHECKING:
    import pandas as pd

LARGEST_TEXT = 4000  # characters of one cell
LARGEST_CSV_BYTES = 512 << 20  # of a table after gzip
FIRST_ROW = 2  # the header is line 1

Flags = NDArray[np.bool_]


def table_bytes(name: str, frame: "pd.DataFrame", compress: bool) -> bytes:
    """A table as CSV, times to 0.1 ns; the same frame gives the same bytes. InputError for what would not read."""
    wanted = [column.name for column in columns(name)]
    missing = [column for column in wanted if column not in frame]
    if missing:
        raise InputError(f"table {name}: column {missing[0]!r} is missing")
    text = frame[wanted].round({"median_ns": 1, "p10_ns": 1, "p90_ns": 1}).to_csv(index=False, lineterminator="\n")
    raw = text.encode()
    table_frame(name, raw, Path(f"{name}.csv"))
    return gzip.compress(raw, mtime=0) if compress else raw


def table_frame(name: str, raw: bytes, path: Path) -> "pd.DataFrame":
    """The checked table of a file's bytes; counts are int64, times float64 (NaN where empty), text str.

    Raises:
        InputError: naming file, line and column.
    """
    import pandas as pd

    if path.suffix == ".gz":
        raw = unzipped(raw, path)
    wanted = columns(name)
    try:
        cells = pd.read_csv(io.BytesIO(raw), dtype=str, keep_default_na=False, nrows=MOST_ROWS + 1, encoding="utf-8")
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: is not a CSV table: {str(error).splitlines()[0][:200]}; copy it again") from None
    if len(cells) > MOST_ROWS:
        raise InputError(f"{path}: more than {MOST_ROWS:,} rows; this is no table of a profile")
    _check_columns(list(cells.columns), wanted, path)
    cells = cells.assign(**{column: str(value) for column, value in absent(name).items() if column not in cells})
    frame = pd.DataFrame({column.name: _checked(cells[column.name], column, path) for column in wanted})
    _check_order(frame, path)
    _check_twice(frame, [column.name for column in wanted[: -len(TIMING)]], path)
    return frame


def unzipped(raw: bytes, path: Path) -> bytes:
    """A gzip'd table as text; InputError where it is damaged, or larger than LARGEST_CSV_BYTES."""
    try:
        with gzip.open(io.BytesIO(raw)) as file:
            text = file.read(LARGEST_CSV_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{path}: is damaged: not a whole gzip file; copy it again") from None
    if len(text) > LARGEST_CSV_BYTES:
        raise InputError(
            f"{path}: more than {LARGEST_CSV_BYTES >> 20} MiB when unpacked; this is no table of a profile"
        )
    return text


def _check_columns(found: list[str], wanted: tuple[Column, ...], path: Path) -> None:
    names = [column.name for column in wanted]
    for name in found:
        if name not in names:
            raise InputError(f"{path}: column {name[:60]!r} is not known; {suggestion(name, names)}")
    for name in (column.name for column in wanted if column.absent is None):
        if name not in found:
            raise InputError(f"{path}: column {name!r} is missing; add it")


def _checked(
    cells: "pd.Series[str]", column: Column, path: Path
) -> "pd.Series[float] | pd.Series[int] | pd.Series[str]":
    """The column's values; InputError at the first that does not pass."""
    import pandas as pd

    empty = (cells == "").to_numpy()
    if not column.optional:
        _refuse(empty, cells, column, path, "is empty; give a value")
    if column.kind == "text":
        _refuse((cells.str.len() > LARGEST_TEXT).to_numpy(), cells, column, path, "is too long for a name")
        if column.words is not None:
            known = "is not known; one of " + ", ".join(column.words)
            _refuse(~cells.isin(column.words).to_numpy() & ~empty, cells, column, path, known)
        return cells
    numbers = pd.to_numeric(cells, errors="coerce").astype(np.float64)
    values = numbers.to_numpy()
    _refuse(~np.isfinite(values) & ~empty, cells, column, path, "is not a number")
    if column.kind == "count":
        low, high = float(column.least), float(MOST)
        _refuse((values < low) | (values > high), cells, column, path, f"is not from {column.least} to 2**40")
        _refuse(values != np.floor(values), cells, column, path, "is not a whole number")
        return numbers.astype(np.int64)
    _refuse((values <= 0.0) | (values > LONGEST_NS), cells, column, path, "is not above 0 and at most 1e12 ns")
    return numbers


def _refuse(bad: Flags, cells: "pd.Series[str]", column: Column, path: Path, why: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{path}:{row + FIRST_ROW}: {column.name}={cells.iloc[row][:60]!r}: {why}")


def _check_order(frame: "pd.DataFrame", path: Path) -> None:
    """p10 <= median <= p90, where given."""
    median = frame["median_ns"].to_numpy()
    for low, high in (("p10_ns", "median_ns"), ("median_ns", "p90_ns")):
        a, b = (median if name == "median_ns" else frame[name].to_numpy() for name in (low, high))
        wrong = a > b  # false where either is NaN
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{path}:{row + FIRST_ROW}: {high}={b[row]:g}: is below {low}={a[row]:g}; quantiles must rise"
            )


def _check_twice(frame: "pd.DataFrame", sizes: list[str], path: Path) -> None:
    twice = frame.duplicated(sizes).to_numpy()
    if twice.any():
        row = int(np.argmax(twice))
        raise InputError(f"{path}:{row + FIRST_ROW}: the same sizes as an earlier row; keep one")
