"""What a cell of a trace may hold: one value with a reason when it is wrong, or a whole column at numpy's speed.

`many` answers None when anything in the column is not plainly right; the caller then asks `one` value by value, which
knows what to say. So the fast way needs no error messages and the exact way no speed.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkit.errors import suggestion
from simkit.workloads.workload import I64

MAX_TOKENS = 2**31 - 1  # lengths are int32
MAX_TIME_US = 100 * 366 * 86_400 * 1_000_000  # a century: in ns it still leaves two thirds of int64
I64_MAX = 2**63 - 1

Value = object
"""A JSON value, or a CSV cell's text or number."""


@dataclass(frozen=True)
class Ragged:
    """A list of integers for each row."""

    length: I64  # [rows]
    flat: I64  # [sum of length]


Column = NDArray[np.generic] | Ragged


class Cell(Protocol):
    """A kind of value."""

    @property
    def numeric(self) -> bool:
        """Whether a CSV cell is turned into a number before it is asked about."""

    @property
    def reason(self) -> str:
        """What a row is counted under when its value is wrong."""

    def one(self, value: Value) -> int | str | list[int]:
        """The value to store; raises ValueError that says what is wrong with it."""

    def many(self, values: Sequence[Value] | NDArray[np.generic]) -> Column | None:
        """The column to store, or None when some value needs a closer look."""

    def pack(self, values: list[int | str | list[int]]) -> Column:
        """Values that `one` gave, as a column."""


DECIMAL = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"


def number(text: str) -> int | float:
    """The number that a CSV cell spells; raises ValueError when it spells none."""
    text = text.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    if re.fullmatch(DECIMAL + "|[+-]?(nan|inf|infinity)", text, re.IGNORECASE):
        return float(text)
    if re.fullmatch(WALL_CLOCK, text):
        raise ValueError("is a date, not a number; with --columns, --time-unit clock reads dates")
    raise ValueError("is empty; a number is wanted" if not text else "is not a number")


def _finite(value: Value) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a number")
    # comparing beats math.isfinite, which raises for an int of 400 digits
    if value != value or value in (math.inf, -math.inf):
        raise ValueError("is not a finite number")
    return value


def numbers(values: Sequence[Value] | NDArray[np.generic]) -> NDArray[np.generic] | None:
    """The values as an int64 or float64 array, or None when some are not plain numbers."""
    if isinstance(values, np.ndarray):
        array = values
    else:
        if not set(map(type, values)) <= {int, float}:
            return None
        try:
            array = np.array(values)
        except OverflowError:
            return None
    return array if array.dtype in (np.dtype(np.int64), np.dtype(np.float64)) else None


@dataclass(frozen=True)
class Integer:
    """A whole number within bounds, both included."""

    minimum: int = 0
    maximum: int = I64_MAX
    reason: str = "bad_value"
    numeric: bool = True

    def one(self, value: Value) -> int:
        exact = _finite(value)
        if exact != int(exact):
            raise ValueError("is not a whole number")
        if exact < self.minimum:
            raise ValueError("is negative" if self.minimum == 0 else f"is below {self.minimum}")
        if exact > self.maximum:
            raise ValueError(f"is above {self.maximum}")
        return int(exact)

    def many(self, values: Sequence[Value] | NDArray[np.generic]) -> I64 | None:
        array = numbers(values)
        if array is None or len(array) == 0:
            return None
        # a float beyond 2**53 is left to `one`, which compares exactly
        top = self.maximum if array.dtype.kind == "i" else min(self.maximum, 2**53)
        if not (array.min() >= self.minimum and array.max() <= top):  # false for NaN too
            return None
        whole = array.astype(np.int64)
        return whole if array.dtype.kind == "i" or bool((whole == array).all()) else None

    def pack(self, values: list[int | str | list[int]]) -> I64:
        return np.array(values, dtype=np.int64)


def tokens() -> Integer:
    """A length in tokens. Zero passes here: whether it is a failure or an error is the format's rule."""
    return Integer(0, MAX_TOKENS, reason="bad_length")


@dataclass(frozen=True)
class Time:
    """A time from the trace's start, in units of `unit_us` microseconds; stored as whole microseconds."""

    unit_us: int
    reason: str = "bad_time"
    numeric: bool = True

    def one(self, value: Value) -> int:
        exact = _finite(value)
        if exact < 0:
            raise ValueError("is negative; times count from the trace's start")
        if exact > MAX_TIME_US // self.unit_us:
            raise ValueError("is more than a century; check the unit")
        return round(exact * self.unit_us)

    def many(self, values: Sequence[Value] | NDArray[np.generic]) -> I64 | None:
        array = numbers(values)
        if array is None or len(array) == 0:
            return None
        if not (array.min() >= 0 and array.max() <= MAX_TIME_US // self.unit_us):
            return None
        scaled = array * self.unit_us
        return np.rint(scaled).astype(np.int64) if array.dtype.kind == "f" else scaled.astype(np.int64)

    def pack(self, values: list[int | str | list[int]]) -> I64:
        return np.array(values, dtype=np.int64)


WALL_CLOCK = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})?"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class WallClock:
    """A date and time `YYYY-mm-dd HH:MM:SS[.fraction][zone]`, stored as microseconds since 1970 (finer digits cut).

    Azure's 2023 traces have seven digits, the last always 0, and no zone; those of 2024 have six and +00:00.
    """

    reason: str = "bad_time"
    numeric: bool = False

    def one(self, value: Value) -> int:
        if not isinstance(value, str) or not re.fullmatch(WALL_CLOCK, value.strip()):
            raise ValueError("is not a time like 2023-11-16 18:15:46.680590")
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError as error:
            raise ValueError(f"is not a time ({error})") from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return (moment - EPOCH) // timedelta(microseconds=1)

    def many(self, values: Sequence[Value] | NDArray[np.generic]) -> I64 | None:
        texts = pd.Series(np.asarray(values, dtype=object))
        try:
            if not bool(texts.str.fullmatch(WALL_CLOCK).all()):
                return None
            moments = pd.to_datetime(texts, format="ISO8601", utc=True)
        except (ValueError, TypeError, AttributeError):
            return None
        nanoseconds = moments.astype("datetime64[ns, UTC]").astype("int64").to_numpy()
        return np.asarray(nanoseconds // 1000, dtype=np.int64)

    def pack(self, values: list[int | str | list[int]]) -> I64:
        return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class Text:
    """A name or an identifier; whole numbers are taken as their digits."""

    known: tuple[str, ...] = ()  # the values there are; empty: any
    reason: str = "bad_value"
    numeric: bool = False

    def one(self, value: Value) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError("is not text")
        if isinstance(value, int) and not -I64_MAX <= value <= I64_MAX:
            raise ValueError("is beyond 64 bits; put it in quotes")
        text = str(value)
        if not text:
            raise ValueError("is empty")
        if self.known and text not in self.known:
            raise ValueError(f"is not known; {suggestion(text, self.known)}")
        return text

    def many(self, values: Sequence[Value] | NDArray[np.generic]) -> NDArray[np.object_] | None:
        if not set(map(type, values)) <= {str, int}:
            return None
        column = np.empty(len(values), dtype=object)
        try:
            column[:] = [self.one(value) for value in values]
        except ValueError:
            return None
        return column

    def pack(self, values: list[int | str | list[int]]) -> NDArray[np.object_]:
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column


@dataclass(frozen=True)
class HashIds:
    """A list of block ids."""

    reason: str = "bad_hash_ids"
    numeric: bool = False

    def one(self, value: Value) -> list[int]:
        if not isinstance(value, list) or not set(map(type, value)) <= {int}:
            raise ValueError("is not a list of whole numbers")
        if value and not (min(value) >= -I64_MAX and max(value) <= I64_MAX):
            raise ValueError("holds an id beyond 64 bits")
        return value

    def many(self, values: Sequence[Value] | NDArray[np.generic]) -> Ragged | None:
        if not set(map(type, values)) <= {list}:
            return None
        lists = [value for value in values if isinstance(value, list)]
        flat = list(chain.from_iterable(lists))
        if not set(map(type, flat)) <= {int} or (flat and not (min(flat) >= -I64_MAX and max(flat) <= I64_MAX)):
            return None
        length = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
        return Ragged(length, np.array(flat, dtype=np.int64))

    def pack(self, values: list[int | str | list[int]]) -> Ragged:
        ragged = self.many(values)
        assert ragged is not None, "`one` let these pass"
        return ragged
