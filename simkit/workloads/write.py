"""Writing a workload in our own format or in those that other tools read."""

import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import zstandard

from simkit.errors import InputError, suggestion
from simkit.workloads.formats import mooncake
from simkit.workloads.header import PROVENANCE, SCHEMA
from simkit.workloads.workload import Prefixes, Workload

LINES_AT_ONCE = 10_000
# the wall clock of a trace that has none; a fixed one, so that equal workloads give equal files
AZURE_START = datetime(2023, 11, 16, tzinfo=UTC)

Lines = Iterator[str]


@dataclass(frozen=True)
class Writer:
    """How one format is written."""

    lines: Callable[[Workload], Lines]  # without line ends
    holds: frozenset[str]  # the workload's columns that the format has a place for


def simkit_lines(workload: Workload) -> Lines:
    """Header and rows of a simkit trace."""
    yield _json(trace_header(workload))
    columns: dict[str, list[object] | tuple[object, ...]] = {
        "request_id": workload.request_id or tuple(map(str, range(len(workload)))),
        "arrival_us": workload.arrival_us.tolist(),
        "prompt_tokens": workload.prompt_tokens.tolist(),
        "output_tokens": workload.output_tokens.tolist(),
    }
    if workload.session_id is not None:
        columns["session_id"] = tuple(name or None for name in workload.session_id)
    if workload.priority is not None:
        columns["priority"] = workload.priority.tolist()
    columns |= workload.extra
    ids = _ids_of(workload.prefixes) if workload.prefixes is not None else None
    names = tuple(columns)
    for row in zip(*columns.values(), strict=True):
        request = {name: value for name, value in zip(names, row, strict=True) if value is not None}
        if ids is not None and (found := next(ids)):
            request["hash_ids"] = found
        yield _json(request)


def trace_header(workload: Workload) -> dict[str, object]:
    """The header object of a workload's own file."""
    header: dict[str, object] = {
        "schema": SCHEMA,
        "name": workload.name,
        "source": workload.source,
        "time_origin": "relative",
        "tick_us": workload.tick_us,
    }
    if workload.prefixes is not None:
        header |= {
            "block_tokens": workload.prefixes.block_tokens,
            "hash_scope": "global",
            "partial_block": workload.prefixes.partial_block,
        }
    header |= {name: workload.provenance[name] for name in PROVENANCE if name in workload.provenance}
    if "truncated" in workload.provenance:
        header["truncated"] = True
    return header | {"transform": list(workload.transforms), "dropped_rows": workload.dropped_rows}


def mooncake_lines(workload: Workload) -> Lines:
    """Mooncake's JSON lines; ids only where they are of 512 tokens and cover the prompts, unfilled last block too."""
    ids = _ids_of(workload.prefixes) if _mooncake_ids(workload) and workload.prefixes is not None else None
    rows = zip(
        workload.arrival_us.tolist(), workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True
    )
    for arrival_us, prompt, output in rows:
        request = {"timestamp": _milliseconds(arrival_us), "input_length": prompt, "output_length": output}
        yield _json(request if ids is None else request | {"hash_ids": next(ids)})


def _mooncake_ids(workload: Workload) -> bool:
    prefixes = workload.prefixes
    if prefixes is None or prefixes.block_tokens != mooncake.BLOCK_TOKENS:
        return False
    named = prefixes.start[1:] - prefixes.start[:-1]
    cover = -(-workload.prompt_tokens.astype("int64") // mooncake.BLOCK_TOKENS)
    return bool(((named == cover) | (named == 0)).all())


def _milliseconds(time_us: int) -> int | float:
    return time_us // 1000 if time_us % 1000 == 0 else time_us / 1000


def azure_lines(workload: Workload) -> Lines:
    """Azure's CSV, from midnight of the day of its 2023 traces on."""
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    rows = zip(
        workload.arrival_us.tolist(), workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True
    )
    for arrival_us, prompt, output in rows:
        moment = AZURE_START + timedelta(microseconds=arrival_us)
        yield f"{moment:%Y-%m-%d %H:%M:%S.%f}0,{prompt},{output}"


def vidur_lines(workload: Workload) -> Lines:
    """Vidur's CSV."""
    yield "arrived_at,num_prefill_tokens,num_decode_tokens"
    rows = zip(
        workload.arrival_us.tolist(), workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True
    )
    for arrival_us, prompt, output in rows:
        yield f"{arrival_us // 1_000_000}.{arrival_us % 1_000_000:06d},{prompt},{output}"


LENGTHS_AND_TIMES = frozenset({"arrival_us", "prompt_tokens", "output_tokens"})

WRITERS: dict[str, Writer] = {
    "simkit": Writer(simkit_lines, frozenset()),
    "mooncake": Writer(mooncake_lines, LENGTHS_AND_TIMES | {"hash_ids"}),
    "azure": Writer(azure_lines, LENGTHS_AND_TIMES),
    "vidur": Writer(vidur_lines, LENGTHS_AND_TIMES),
}


def write_workload(workload: Workload, path: Path | str, to: str = "simkit") -> tuple[str, ...]:
    """Writes a file, packed as its ending says (.gz, .zst), and names the columns that the format cannot hold.

    The file appears whole or not at all. Raises InputError for an unknown format or a path that cannot be written.
    """
    if to not in WRITERS:
        raise InputError(f"format {to!r} cannot be written; {suggestion(to, WRITERS)}")
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory; name the file to write in it")
    try:
        _write_atomically(path, WRITERS[to].lines(workload))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    return lost_columns(workload, to)


def lost_columns(workload: Workload, to: str) -> tuple[str, ...]:
    """The columns of a workload that a format has no place for."""
    if to == "simkit":
        return ()
    there = {"arrival_us": True, "prompt_tokens": True, "output_tokens": True, **dict.fromkeys(workload.extra, True)}
    there["request_id"] = workload.request_id is not None
    there["session_id"] = workload.session_id is not None
    there["priority"] = workload.priority is not None
    there["hash_ids"] = workload.prefixes is not None
    holds = WRITERS[to].holds - ({"hash_ids"} if not _mooncake_ids(workload) else set())
    return tuple(sorted(name for name, present in there.items() if present and name not in holds))


def _write_atomically(path: Path, lines: Lines) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as raw:
            _pack(raw, path.suffix, lines)
        # mkstemp makes files that only their owner may read; a trace is an ordinary file
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _pack(raw: BinaryIO, suffix: str, lines: Lines) -> None:
    if suffix == ".gz":
        # no name and no time in the header: equal workloads give equal bytes
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
            _write_lines(packed, lines)
    elif suffix == ".zst":
        with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as squeezed:
            _write_lines(squeezed, lines)
    else:
        _write_lines(raw, lines)


def _write_lines(file: "BinaryIO | gzip.GzipFile | zstandard.ZstdCompressionWriter", lines: Lines) -> None:
    buffer = io.StringIO()
    for number, line in enumerate(lines, 1):
        buffer.write(line)
        buffer.write("\n")
        if number % LINES_AT_ONCE == 0:
            file.write(buffer.getvalue().encode())
            buffer.seek(0)
            buffer.truncate()
    file.write(buffer.getvalue().encode())


def _ids_of(prefixes: Prefixes) -> Iterator[list[int]]:
    start = prefixes.start.tolist()
    return (prefixes.ids[a:b].tolist() for a, b in pairwise(start))


def _json(value: dict[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
