"""Coding agents' sessions: kv-cache-tester's JSON, one file a session, with tool calls and sub-agents.

Format: callanjfox/kv-cache-tester, traces/trace_NNNN.json: `requests` of {t, type, in, out, hash_ids, api_time,
think_time}, seconds from the session's start; an entry of type "subagent" has `requests` on a clock of its own, and
stands at the time at which it ended (of the 63 public ones, `t` - `duration_ms` is after the caller's answer in 63, `t`
before the caller's next request in 61).
"""

import json
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simkit.errors import InputError
from simkit.workloads.arrivals import ArrivalSpec, arrivals_us
from simkit.workloads.cells import MAX_TIME_US, MAX_TOKENS
from simkit.workloads.session_files import SessionFile, session_files
from simkit.workloads.streams import stream
from simkit.workloads.workload import Prefixes, Workload


@dataclass
class _Rows:
    """Requests of all sessions, in the order in which they were read."""

    ids: list[str] = field(default_factory=list)
    session: list[str] = field(default_factory=list)
    arrival_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    think_s: list[float] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    hashes: list[list[int]] = field(default_factory=list)
    empty: int = 0  # of them, those whose prompt or answer had no token


def read_agent_sessions(
    path: Path | str, sessions: int | None = None, starts: ArrivalSpec | None = None, seed: int = 0
) -> Workload:
    """The sessions of a folder's *.json files, of a tar of such files, or of one file; at most the first `sessions`.

    `parent_id` and `think_us` say how to replay them closed: a request comes so long after the answers it waits for, a
    sub-agent's first after its caller's last, a caller's next after its sub-agents' last. Arrival times are those of
    the recording, sessions starting all at 0, or as the process `starts` says. Raises InputError for a file that is no
    session.
    """
    rows, first_rows = _Rows(), []
    block_tokens = 0
    names: set[str] = set()
    for file in session_files(Path(path), sessions):
        found = _read(file)
        first_rows.append(len(rows.ids))
        name = _own_name(file, names)
        names.add(name)
        try:
            size = int(found.get("block_size", 64))  # type: ignore[call-overload]
            _add_session(rows, name, found["requests"], 0.0)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{file.place}: is no session of an agent ({type(error).__name__}: {error})") from None
        if size < 1 or block_tokens not in (0, size):
            raise InputError(f"{file.place}: block_size={size}: others have {block_tokens or 64}; read them apart")
        block_tokens = size
    if not rows.ids:
        raise InputError(f"{path}: its sessions have no request; give others")
    if starts is not None:
        _start_at(rows, first_rows, arrivals_us(starts, stream(seed), len(first_rows)) / 1e6)
    return _workload(rows, Path(path), block_tokens)


def is_agent_session(path: Path) -> bool:
    """Whether a .json file holds one session; other traces have a request a line."""
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        _read(next(session_files(path, 1)))
    except InputError:
        return False
    return True


def _read(file: SessionFile) -> dict[str, object]:
    try:
        found = json.loads(file.raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file.place}: is not JSON ({str(error)[:100]}); give the folder of the sessions") from None
    if not isinstance(found, dict) or not isinstance(found.get("requests"), list):
        raise InputError(f"{file.place}: has no list of requests; give the folder of the sessions")
    return found


def _own_name(file: SessionFile, taken: set[str]) -> str:
    """The file's name as a session's: without blanks, which part the ids in `parent_id`, and no other session's.

    Files of one name in two folders of a tar are two sessions, whose block ids have nothing to do with each other.
    """
    name = "_".join(file.name.split()) or "session"
    numbered = (f"{name}~{number}" for number in count(2))
    return next(tried for tried in chain((name,), numbered) if tried not in taken)


def _start_at(rows: _Rows, first_rows: list[int], starts_s: NDArray[np.float64]) -> None:
    """Move each session to its start."""
    for first, end, start_s in zip(first_rows, [*first_rows[1:], len(rows.ids)], starts_s.tolist(), strict=True):
        for row in range(first, end):
            rows.arrival_s[row] += start_s


def _add_session(rows: _Rows, name: str, requests: object, start_s: float) -> None:
    """One session's requests, its agents' behind the caller's that they follow."""
    waits_for: list[int] = []  # rows that the caller's next request follows from
    last = -1  # the caller's latest
    assert isinstance(requests, list), "the reader looked"
    for entry in requests:
        if entry["type"] == "subagent":
            own = entry.get("requests")
            if not isinstance(own, list) or not own:
                continue
            begin_s = start_s + float(entry["t"]) - float(entry.get("duration_ms") or 0) / 1000
            follows = [last] if last >= 0 else []
            for inner in own:
                row = _add(rows, name, inner, begin_s, follows, "subagent")
                follows = [row]
            waits_for += follows
            continue
        last = _add(rows, name, entry, start_s, waits_for, "tool" if entry.get("stop") == "tool_use" else "text")
        waits_for = [last]


def _add(rows: _Rows, name: str, entry: dict[str, object], start_s: float, follows: list[int], kind: str) -> int:
    """One request; returns its row."""
    row = len(rows.ids)
    begins_s = _seconds("t", start_s + float(entry["t"]))  # type: ignore[arg-type]
    rows.ids.append(f"{name}/{row}")
    rows.session.append(name)
    rows.arrival_s.append(begins_s)
    rows.end_s.append(begins_s + _seconds("api_time", float(entry.get("api_time") or 0.0)))  # type: ignore[arg-type]
    lengths = _tokens(entry, "in"), _tokens(entry, "out")
    rows.empty += min(lengths) == 0
    rows.prompt.append(max(1, lengths[0]))
    rows.output.append(max(1, lengths[1]))
    rows.parents.append(" ".join(rows.ids[parent] for parent in follows))
    rows.think_s.append(max(0.0, begins_s - max((rows.end_s[parent] for parent in follows), default=begins_s)))
    rows.kind.append(kind)
    hashes = entry.get("hash_ids") or []
    rows.hashes.append([int(value) for value in hashes])  # type: ignore[attr-defined]
    return row


def _seconds(name: str, value: float) -> float:
    if not abs(value) * 1e6 <= MAX_TIME_US:  # NaN too
        raise ValueError(f"{name}={value:g} is no number of seconds within a century")
    return value


def _tokens(entry: dict[str, object], name: str) -> int:
    tokens: int = int(entry[name])  # type: ignore[call-overload]
    if not 0 <= tokens <= MAX_TOKENS:
        raise ValueError(f"{name}={tokens} is no number of tokens; between 0 and {MAX_TOKENS} is wanted")
    return tokens


def _workload(rows: _Rows, folder: Path, block_tokens: int) -> Workload:
    """In order of arrival; of requests at one time, the one that the others follow from comes first."""
    arrival = np.array(rows.arrival_s)
    depth = np.zeros(len(arrival), dtype=np.int64)
    row_of = {name: row for row, name in enumerate(rows.ids)}
    for row, names in enumerate(rows.parents):
        for name in names.split():
            parent = row_of[name]
            # clocks of whole seconds may put an answer after what follows it: the order of the story wins
            arrival[row] = max(arrival[row], arrival[parent])
            depth[row] = max(depth[row], depth[parent] + 1)
    order = np.lexsort((depth, arrival)).tolist()
    known: dict[tuple[str, int], int] = {}
    ids = [known.setdefault((rows.session[row], value), len(known)) for row in order for value in rows.hashes[row]]
    lengths = [len(rows.hashes[row]) for row in order]
    return Workload(
        name=f"agents in {folder.name}",
        arrival_us=np.rint((arrival - min(0.0, float(arrival.min())))[order] * 1e6).astype(np.int64),
        prompt_tokens=np.array(rows.prompt, dtype=np.int32)[order],
        output_tokens=np.array(rows.output, dtype=np.int32)[order],
        request_id=tuple(rows.ids[row] for row in order),
        session_id=tuple(rows.session[row] for row in order),
        prefixes=Prefixes(
            block_tokens, np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), np.array(ids, np.int64)
        ),
        source=str(folder),
        extra={
            "parent_id": tuple(rows.parents[row] or None for row in order),
            "think_us": tuple(round(rows.think_s[row] * 1e6) for row in order),
            "kind": tuple(rows.kind[row] for row in order),
        },
        # kept, since others wait for their end: 27 of the 49,334 public ones have no answer
        notes=() if not rows.empty else (f"{rows.empty} requests of no token are taken to have 1",),
    )
