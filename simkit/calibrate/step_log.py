"""Read an engine's own step log, format `simkit-measured-run-1`: JSON lines, plain, gzip or zstd.

A `header` line, then `request` and `step` lines in any order. Times are seconds from the start of the run. A step's
`batch` holds [request id, tokens scheduled, tokens computed before] for each request in it; the device works from
`schedule_end` to `update_start`, the host from there to the next step's `schedule_end`. With `async_scheduling` in
the header a step is scheduled while the one before runs: the device begins it when that one is done. docs/calibrate.md
tells how to record one.
"""

import re
from array import array
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simkit.errors import InputError, suggestion
from simkit.invalid import first_error
from simkit.workloads.source import line_chunks

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

FORMAT = "simkit-measured-run-1"

MAX_STEPS = 5_000_000
MAX_REQUESTS = 5_000_000
MAX_SHARES = 100_000_000  # requests in steps, summed: 2.4 GB in memory
CLOCK_SLACK_S = 2e-6  # times are written with 6 digits, so two that touch may cross by their rounding

Seconds = Annotated[float, Field(ge=0.0, le=1e9, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=0, le=1 << 31)]
Ordinal = Annotated[int, Field(ge=1, le=1 << 31)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Fact = str | int | float | bool | None


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Header(_Line):
    """What was measured, on what. Sizes are the engine's settings in its own names."""

    kind: Literal["header"] = "header"
    format: str
    engine: Name
    device: Name
    model: dict[Name, Fact] = Field(default_factory=dict, max_length=200)
    versions: dict[Name, Name] = Field(default_factory=dict, max_length=50)
    block_size: Ordinal | None = None
    num_gpu_blocks: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    async_scheduling: bool = False
    load_average: tuple[Seconds, ...] = Field(default=(), max_length=3)
    time_unit: str = Field(default="s from the start of the run", max_length=200)
    partial: str | None = Field(default=None, max_length=1000, description="what cut the run short")


class RequestLine(_Line):
    """A request as its client saw it."""

    kind: Literal["request"] = "request"
    id: Name
    arrival: Seconds
    prompt_tokens: Ordinal
    output_tokens: Ordinal
    token_times: tuple[Seconds, ...] = Field(default=(), max_length=1 << 20)
    end: Seconds | None = None


class StepLine(_Line):
    """One step of the engine. `waiting` requests and `free_blocks` are after scheduling."""

    kind: Literal["step"] = "step"
    schedule_start: Seconds
    schedule_end: Seconds
    update_start: Seconds
    update_end: Seconds
    batch: tuple[tuple[Name, Ordinal, Tokens], ...] = Field(max_length=65_536)
    waiting: Tokens | None = None
    free_blocks: Tokens | None = None


@dataclass(frozen=True)
class StepLog:
    """A recorded run. Steps in order of time; the batch of step i is shares first[i]:first[i + 1]."""

    path: Path
    header: Header
    requests: tuple[RequestLine, ...]  # in order of arrival
    schedule_start_s: F64  # [steps]
    schedule_end_s: F64  # [steps]
    update_start_s: F64  # [steps]
    update_end_s: F64  # [steps]
    first: I64  # [steps + 1]
    names: tuple[str, ...]  # ids of the requests in steps, in order of first appearance
    share_request: I64  # [shares] index into `names`
    share_tokens: I64  # [shares] scheduled now, >= 1
    share_before: I64  # [shares] computed before, >= 0

    @property
    def steps(self) -> int:
        """How many steps were recorded."""
        return len(self.schedule_start_s)

    @property
    def device_s(self) -> F64:
        """[steps] on the device: from when it could begin to when the tokens were known."""
        begin_s = self.schedule_end_s
        if self.header.async_scheduling:
            begin_s = np.maximum(begin_s, np.concatenate([[0.0], self.update_start_s[:-1]]))
        taken_s: F64 = self.update_start_s - begin_s
        return taken_s

    @property
    def gap_s(self) -> F64:
        """[steps] from a step's update to the next scheduling; NaN where none follows, or where the host waited."""
        if not self.header.async_scheduling:
            return np.maximum(np.append(self.schedule_start_s[1:], np.nan) - self.update_end_s, 0.0)
        begins = np.append(self.schedule_start_s, np.nan)[np.searchsorted(self.schedule_start_s, self.update_end_s)]
        # with nobody to schedule it waited for the step in flight, whose update then came first
        waited = begins >= np.append(self.update_end_s[1:], np.inf)
        return np.where(waited, np.nan, np.maximum(begins - self.update_end_s, 0.0))


@dataclass
class _Columns:
    """Steps as they are read."""

    times: "array[float]" = field(default_factory=lambda: array("d"))  # 4 a step
    first: "array[int]" = field(default_factory=lambda: array("q", [0]))
    shares: "array[int]" = field(default_factory=lambda: array("q"))  # 3 a share
    numbers: dict[str, int] = field(default_factory=dict)  # request id -> its number
    first_line: dict[str, int] = field(default_factory=dict)  # request id -> line of its first step


def read_step_log(path: Path) -> StepLog:
    """The run recorded in a file.

    Raises:
        InputError: with file, line, field and fix, for a file that cannot be read, is damaged or too large, a line that
            does not follow the format, times that run backwards, or steps that overlap.
    """
    header: Header | None = None
    requests: dict[str, RequestLine] = {}
    columns = _Columns()
    for chunk in line_chunks(path):
        for number, text in enumerate(chunk.text.split("\n"), start=chunk.first_line):
            if not text.strip():
                continue
            place = f"{path}:{number}"
            if header is None:
                header = _header(text, place)
                continue
            kind = _kind(text, place)
            if kind == "request":
                _add_request(requests, _parsed(RequestLine, text, place), place)
            elif kind == "step":
                _add_step(columns, _parsed(StepLine, text, place), number, path, header.async_scheduling)
            else:
                raise InputError(f"{place}: kind='header': a second header; write each run to a file of its own")
    if header is None:
        raise InputError(f"{path}: is empty; a step log begins with a header line of format {FORMAT}")
    if len(columns.first) == 1:
        raise InputError(f"{path}: holds no step line; record steps, or name another file")
    if requests:
        _check_known(columns, requests, path)
    return _step_log(path, header, requests, columns)


def _header(text: str, place: str) -> Header:
    if _kind(text, place) != "header":
        raise InputError(f"{place}: kind: the first line is no header; a step log begins with one of format {FORMAT}")
    named = re.search(r'"format"\s*:\s*"([^"]{0,100})"', text)
    if named is not None and named[1] != FORMAT:
        raise InputError(f"{place}: format={named[1]!r}: is not known; {suggestion(named[1], [FORMAT])}")
    return _parsed(Header, text, place)


class _Kind(BaseModel):
    kind: str


def _kind(text: str, place: str) -> str:
    """The kind a line says it is, one of those known."""
    kind = _parsed(_Kind, text, place).kind
    if kind not in ("header", "request", "step"):
        raise InputError(
            f"{place}: kind={kind[:60]!r}: is not known; {suggestion(kind, ['header', 'request', 'step'])}"
        )
    return kind


L = TypeVar("L", bound=BaseModel)


def _parsed(line: type[L], text: str, place: str) -> L:
    try:
        return line.model_validate_json(text)
    except ValidationError as error:
        raise InputError(first_error(error, place, line.model_fields)) from None


def _add_request(requests: dict[str, RequestLine], line: RequestLine, place: str) -> None:
    if line.id in requests:
        raise InputError(f"{place}: id={line.id!r}: is the id of an earlier request; give each its own")
    if len(requests) == MAX_REQUESTS:
        raise InputError(f"{place}: more than {MAX_REQUESTS:,} requests; split the log")
    times = (line.arrival, *line.token_times, *(() if line.end is None else (line.end,)))
    for earlier, later in pairwise(times):
        if later < earlier - CLOCK_SLACK_S:
            raise InputError(f"{place}: token_times: {later} s comes after {earlier} s; times may not run backwards")
    requests[line.id] = line


def _add_step(columns: _Columns, line: StepLine, number: int, path: Path, overlapping: bool) -> None:
    place = f"{path}:{number}"
    times = (line.schedule_start, line.schedule_end, line.update_start, line.update_end)
    names = ("schedule_start", "schedule_end", "update_start", "update_end")
    for i in range(3):
        if times[i + 1] < times[i]:
            raise InputError(
                f"{place}: {names[i + 1]}={times[i + 1]}: is before {names[i]}={times[i]}; swap or drop it"
            )
    _check_order(columns, times, place, overlapping)
    if len(columns.first) > MAX_STEPS or len(columns.shares) > 3 * MAX_SHARES:
        raise InputError(f"{place}: more than {MAX_STEPS:,} steps or {MAX_SHARES:,} requests in them; split the log")
    if len({name for name, _, _ in line.batch}) < len(line.batch):
        raise InputError(f"{place}: batch: a request is in it twice; add up its tokens")
    for name, tokens, before in line.batch:
        columns.first_line.setdefault(name, number)
        columns.shares.extend((columns.numbers.setdefault(name, len(columns.numbers)), tokens, before))
    columns.times.extend(times)
    columns.first.append(len(columns.shares) // 3)


def _check_order(columns: _Columns, times: tuple[float, ...], place: str, overlapping: bool) -> None:
    """A step after the one before; one that overlaps it, after its scheduling and the update of the one before that."""
    past = columns.times
    if not past:
        return
    if not overlapping:
        if times[0] < past[-1] - CLOCK_SLACK_S:
            raise InputError(
                f"{place}: schedule_start={times[0]}: is before the last step's update_end={past[-1]}; sort the steps, "
                "and if they were scheduled asynchronously let the header say async_scheduling: true"
            )
        return
    if times[0] < max(past[-3], past[-5] if len(past) > 4 else 0.0) - CLOCK_SLACK_S or times[2] < past[-2]:
        raise InputError(
            f"{place}: schedule_start={times[0]}: more than two steps overlap, or they are out of order; sort them, "
            "at most one may be in flight when another is scheduled"
        )


def _check_known(columns: _Columns, requests: dict[str, RequestLine], path: Path) -> None:
    for name, number in columns.first_line.items():
        if name not in requests:
            raise InputError(f"{path}:{number}: batch: request {name!r} has no request line; add it, or leave out all")


def _step_log(path: Path, header: Header, requests: dict[str, RequestLine], columns: _Columns) -> StepLog:
    times = np.array(columns.times, dtype=np.float64).reshape(-1, 4)
    shares = np.array(columns.shares, dtype=np.int64).reshape(-1, 3)
    return StepLog(
        path=path,
        header=header,
        requests=tuple(sorted(requests.values(), key=lambda request: request.arrival)),
        schedule_start_s=times[:, 0],
        schedule_end_s=times[:, 1],
        update_start_s=times[:, 2],
        update_end_s=times[:, 3],
        first=np.array(columns.first, dtype=np.int64),
        names=tuple(columns.numbers),
        share_request=shares[:, 0],
        share_tokens=shares[:, 1],
        share_before=shares[:, 2],
    )
