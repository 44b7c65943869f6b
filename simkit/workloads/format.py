"""What a trace format is, and the rules that several of them share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simkit.workloads.cells import Ragged
from simkit.workloads.header import TraceHeader
from simkit.workloads.table import Columns, Field, Rule, Table
from simkit.workloads.workload import I64, Prefixes

Finish = Callable[[Table, TraceHeader], "Parts"]


@dataclass(frozen=True)
class Parts:
    """What a format alone knows to make of its columns."""

    prefixes: Prefixes | None = None
    session_id: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def no_rules(header: TraceHeader) -> tuple[Rule, ...]:
    """The header asks for nothing."""
    return ()


def nothing_more(table: Table, header: TraceHeader) -> Parts:
    """The format has lengths and times only."""
    return Parts()


@dataclass(frozen=True)
class Format:
    """A trace format: how its lines are written, what its columns mean, and how a stranger's file is recognised."""

    name: str
    syntax: Literal["csv", "jsonl"]
    fields: tuple[Field, ...]
    rules: tuple[Rule, ...]
    what: str  # one line for tables of formats
    finish: Finish = nothing_more
    clock: Literal["relative", "wall"] = "relative"  # "wall": times are made relative to the earliest
    sniff: frozenset[str] = field(default_factory=frozenset)  # names that must be there; empty: the required fields
    own_header: bool = False  # the first line is a `TraceHeader`
    header_rules: Callable[[TraceHeader], tuple[Rule, ...]] = no_rules  # rules that the header brings

    def marks(self) -> frozenset[str]:
        """The names by which a file of this format is recognised."""
        return self.sniff or frozenset(f.name for f in self.fields if f.required)


def of_role(fields: tuple[Field, ...], role: str) -> str:
    """What the file calls the column of that role."""
    return next(f.name for f in fields if f.role == role)


def lengths_positive(prompt: str, output: str) -> Rule:
    """Both lengths are at least 1; `prompt` and `output` are their names in the file."""

    def broken(columns: Columns) -> NDArray[np.bool_]:
        return (integers(columns, "prompt_tokens") < 1) | (integers(columns, "output_tokens") < 1)

    def say(columns: Columns, row: int) -> str:
        name = prompt if integers(columns, "prompt_tokens")[row] < 1 else output
        return f"{name}=0: a request has at least one token each way; mend or drop the row"

    return Rule("bad_length", broken, say)


def no_output(reason: str) -> Rule:
    """Rows without an output token are left out and counted: there is no answer to simulate."""
    return Rule(reason, lambda columns: integers(columns, "output_tokens") == 0, leave_out=True)


def hash_count(block_tokens: int, *, floor_too: bool) -> Rule:
    """A prompt's ids cover it: ceil(prompt / block) of them, or none; with `floor_too` also only its full blocks."""

    def broken(columns: Columns) -> NDArray[np.bool_]:
        ids = ragged(columns, "hash_ids")
        prompt = integers(columns, "prompt_tokens")
        if ids is None:
            return np.zeros(len(prompt), dtype=np.bool_)
        right = (ids.length == -(-prompt // block_tokens)) | (ids.length == 0)
        if floor_too:
            right |= ids.length == prompt // block_tokens
        return np.asarray(~right, dtype=np.bool_)

    def say(columns: Columns, row: int) -> str:
        ids, prompt = ragged(columns, "hash_ids"), int(integers(columns, "prompt_tokens")[row])
        have = 0 if ids is None else int(ids.length[row])
        return (
            f"hash_ids has {have} ids: {prompt} prompt tokens make {-(-prompt // block_tokens)} blocks of "
            f"{block_tokens}; mend the row, or state the block size in a simkit trace's header"
        )

    return Rule("bad_hash_ids", broken, say)


def integers(columns: Columns, role: str) -> I64:
    """A column known to hold whole numbers."""
    column = columns[role]
    assert not isinstance(column, Ragged)
    return column.astype(np.int64, copy=False)


def ragged(columns: Columns, role: str) -> Ragged | None:
    """A column of lists, if the file has it."""
    column = columns.get(role)
    return column if isinstance(column, Ragged) else None


def prefixes_of(table: Table, block_tokens: int, partial_block: str) -> Prefixes | None:
    """The blocks named by a file's `hash_ids`; None when it names none."""
    ids = ragged(table.columns, "hash_ids")
    if ids is None or len(ids.flat) == 0:
        return None
    return Prefixes(block_tokens, np.concatenate(([0], np.cumsum(ids.length))), small(ids.flat), partial_block)


MAX_ID = 1 << 40  # the engine multiplies ids by blocks a name covers; hashes of 64 bits would overflow


def small(ids: I64) -> I64:
    """The ids, or dense numbers in their place when some are negative or so large as to be hashes."""
    if ids.min() >= 0 and ids.max() < MAX_ID:
        return ids
    return np.asarray(pd.factorize(ids)[0], dtype=np.int64)


def texts(table: Table, role: str) -> tuple[str, ...] | None:
    """A column of optional text as the workload keeps it, "" for none; None when the file has no such column."""
    column = table.columns.get(role)
    if column is None or isinstance(column, Ragged):
        return None
    return tuple("" if value is None else str(value) for value in column)
