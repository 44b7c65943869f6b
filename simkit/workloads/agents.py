"""Coding agents' sessions: kv-cache-tester's JSON, one file a session, with tool calls and sub-agents.

Format: callanjfox/kv-cache-tester, traces/trace_NNNN.json: `requests` of {t, type, in, out, hash_ids, api_time,
think_time}, seconds from the session's start; an entry of type "subagent" has `requests` on a clock of its own, and
stands at the time at which it ended (of the 63 public ones, `t` - `duration_ms` is after the caller's answer in 63, `t`
before the caller's next request in 61).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from simkit.errors import InputError
from simkit.workloads.streams import stream
from simkit.workloads.workload import Prefixes, Workload

MAX_FILE_BYTES = 1 << 27
MAX_FILES = 100_000


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


def read_agent_sessions(
    folder: Path | str, sessions: int | None = None, starts_per_s: float | None = None, seed: int = 0
) -> Workload:
    """The sessions of a folder's *.json files, the first `sessions` by name.

    `parent_id` and `think_us` say how to replay them closed: a request comes so long after the answers it waits for, a
    sub-agent's first after its caller's last, a caller's next after its sub-agents' last. Arrival times are those of
    the recording, sessions starting all at 0, or as a Poisson process of `starts_per_s`. Raises InputError for a file
    that is no session.
    """
    files = sorted(Path(folder).glob("*.json"))[: min(sessions or MAX_FILES, MAX_FILES)]
    if not files:
        raise InputError(f"{folder}: holds no *.json file; give the folder of the sessions")
    rng = stream(seed)
    rows = _Rows()
    start_s, block_tokens = 0.0, 0
    for path in files:
        found = _read(path)
        size = int(found.get("block_size", 64))  # type: ignore[call-overload]
        if block_tokens not in (0, size):
            raise InputError(f"{path}: block_size={size}: other sessions have {block_tokens}; read them apart")
        block_tokens = size
        if starts_per_s is not None:
            start_s += float(rng.exponential(1 / starts_per_s))
        try:
            _add_session(rows, path.stem, found["requests"], start_s)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: is no session of an agent ({type(error).__name__}: {error})") from None
    return _workload(rows, Path(folder), block_tokens)


def _read(path: Path) -> dict[str, object]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: more than {MAX_FILE_BYTES >> 20} MiB; a session is a few")
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({str(error)[:100]}); give the folder of the sessions") from None
    if not isinstance(found, dict) or not isinstance(found.get("requests"), list):
        raise InputError(f"{path}: has no list of requests; give the folder of the sessions")
    return found


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
    begins_s = start_s + float(entry["t"])  # type: ignore[arg-type]
    rows.ids.append(f"{name}/{row}")
    rows.session.append(name)
    rows.arrival_s.append(begins_s)
    rows.end_s.append(begins_s + float(entry.get("api_time") or 0.0))  # type: ignore[arg-type]
    rows.prompt.append(max(1, int(entry["in"])))  # type: ignore[call-overload]
    rows.output.append(max(1, int(entry["out"])))  # type: ignore[call-overload]
    rows.parents.append(" ".join(rows.ids[parent] for parent in follows))
    rows.think_s.append(max(0.0, begins_s - max((rows.end_s[parent] for parent in follows), default=begins_s)))
    rows.kind.append(kind)
    hashes = entry.get("hash_ids") or []
    rows.hashes.append([int(value) for value in hashes])  # type: ignore[attr-defined]
    return row


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
    )
