"""A CSV trace whose columns have names of their own: the user says which is which."""

from collections.abc import Mapping
from typing import Literal

from simkit.errors import InputError, suggestion
from simkit.workloads.cells import Integer, Text, Time, WallClock, tokens
from simkit.workloads.format import Format, Parts, lengths_positive, no_output, texts
from simkit.workloads.header import TraceHeader
from simkit.workloads.table import Field, Table

TimeUnit = Literal["s", "ms", "us", "clock"]
UNIT_US: dict[str, int] = {"s": 1_000_000, "ms": 1_000, "us": 1}
ROLES = {
    "arrival": "arrival_us",
    "prompt": "prompt_tokens",
    "output": "output_tokens",
    "session": "session_id",
    "tenant": "tenant_id",
    "priority": "priority",
}


def own_format(columns: Mapping[str, str], unit: TimeUnit = "s") -> Format:
    """The format of a CSV file by a map from roles (`ROLES`) to its column names; times in `unit`, or as wall clock.

    Times count from the first request, whatever they counted from. Without an arrival column, times have to be drawn.
    Raises InputError for a role that is not known or is missing.
    """
    for role in columns:
        if role not in ROLES:
            raise InputError(f"workload.columns: {role}: is not known; {suggestion(role, ROLES)}")
    for role in ("prompt", "output"):
        if role not in columns:
            raise InputError(f"workload.columns: {role} is missing; name the column that holds it, {role}: NAME")
    arrival = WallClock() if unit == "clock" else Time(UNIT_US[unit])
    cells = {
        "arrival": arrival,
        "prompt": tokens(),
        "output": tokens(),
        "session": Text(),
        "tenant": Text(),
        "priority": Integer(-(2**31), 2**31 - 1),
    }
    return Format(
        name="own columns",
        syntax="csv",
        what="CSV with column names of one's own",
        fields=tuple(Field(name, ROLES[role], cells[role]) for role, name in columns.items()),
        rules=(no_output("no_output"), lengths_positive(columns["prompt"], columns["output"])),
        finish=_sessions if "session" in columns else _nothing,
        clock="wall",  # a log's seconds are as often those since 1970 as those since it began
    )


def _sessions(table: Table, header: TraceHeader) -> Parts:
    return Parts(session_id=texts(table, "session_id"))


def _nothing(table: Table, header: TraceHeader) -> Parts:
    return Parts()
