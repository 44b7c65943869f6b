"""A point: one operator at one size, as a row of a profile's table names it, before and after it is timed."""

from dataclasses import dataclass
from typing import NamedTuple

from simkit.calibrate.operator_sizes import read_contexts
from simkit.calibrate.profile_tables import TABLES, absent, size_columns

Size = int | str


@dataclass(frozen=True, slots=True)
class Point:
    """What is to be timed. Two points are equal if a profile would hold them in the same row."""

    table: str  # of profile_tables.TABLES
    sizes: tuple[Size, ...]  # the values of `point_columns(table)`

    def count(self, name: str) -> int:
        """A size that is a number."""
        return int(self.sizes[point_columns(self.table).index(name)])

    def text(self, name: str) -> str:
        """A size that is a word."""
        return str(self.sizes[point_columns(self.table).index(name)])

    def __str__(self) -> str:
        pairs = zip(point_columns(self.table), self.sizes, strict=True)
        return f"{self.table} " + " ".join(f"{name}={value}" for name, value in pairs if value != "")


class PlannedPoint(NamedTuple):
    """A point and why it is there."""

    point: Point
    level: int  # 0: a coarse grid over everything, measured first; 1, 2: what makes it finer
    held_out: bool = False  # drawn from replayed steps: a fit must not see it


def point_columns(table: str) -> list[str]:
    """The columns that say what is timed; `kernel` is what ran, known afterwards."""
    return [name for name in size_columns(table) if name != "kernel" and name not in absent(table)]


def has_kernel(table: str) -> bool:
    """Whether the table says which code ran."""
    return any(column.name == "kernel" for column in TABLES[table])


def contexts_of(point: Point) -> list[int]:
    """The contexts of an `attention_decode` point's requests, tokens."""
    ragged = read_contexts(point.text("contexts"))
    if ragged:
        return [tokens for count, tokens in ragged for _ in range(count)]
    batch = point.count("batch")
    return [point.count("context_tokens") // batch] * batch
