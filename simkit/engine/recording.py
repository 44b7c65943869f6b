"""Recorded schedules of the real vLLM scheduler (`vllm-golden-1`), and their replay through this engine's own loop.

The recording's clock counts steps: a request that arrived at step t is there when step t is planned.
"""

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from simkit.engine.dialect import FIRST_MINOR, LAST_MINOR, dialect_of
from simkit.engine.draft_kinds import SpeculativeMethod, drafting
from simkit.engine.loop import iterate
from simkit.engine.recording_format import Recorded, RecordedConfig, RecordedRequest, groups_of
from simkit.engine.replica import new_replica
from simkit.engine.settings import windowed
from simkit.engine.state import (
    ABORT,
    ADMITTED,
    FCFS,
    FINISHED,
    FLUSH,
    FREE_BLOCKS,
    IN_FLIGHT,
    NEVER,
    NEXT_ARRIVAL,
    NOW,
    OLDEST,
    PREEMPTED_NOW,
    PRIORITY,
    REQUEST,
    ROWS,
    RUNNING_COUNT,
    UNFINISHED,
    Limits,
    Records,
    Replica,
    records,
)
from simkit.errors import InputError
from simkit.invalid import first_error
from simkit.models.steptables import constant_tables

Json = dict[str, object]
EOS_TOKEN = 2  # of the recordings
_MOST_BYTES = 512 << 20  # of a recording, unpacked; 2,000 requests have some 5 MB
# what is compared of a step, in the order in which an engine decides it
PLANNED = ("t", "req", "n", "c0", "new", "res", "pre", "free0", "run0", "wait0", "cached")
FIELDS = (*PLANNED, "fin", "gen", "free1", "run1", "upd_t")


@dataclass(frozen=True)
class Recording:
    """One recorded scenario: the settings, the requests, every field of every step."""

    name: str
    config: Json
    requests: list[Json]
    steps: list[Json]
    free_at_end: int
    engine: str  # vllm-0.32 and the like: whose rules it was recorded with


def read_recording(path: Path) -> Recording:
    """Read one gzip'd JSON-lines file; InputError if it is not of the format."""
    try:
        lines = [json.loads(line) for line in _unpacked(path).splitlines()]
        header, requests, *steps, last = lines
        if header["format"] != "vllm-golden-1":
            raise InputError(f"{path}: format={header['format']!r} is not vllm-golden-1; record with that format")
        Recorded.model_validate({"config": header["config"], "requests": requests["requests"]})
        if not all(isinstance(step, dict) for step in steps):
            raise TypeError("a step is no mapping of keys to values")
        return Recording(
            name=header["name"],
            config=header["config"],
            requests=requests["requests"],
            steps=steps,
            free_at_end=last["free_end"],
            engine=_engine(str(header.get("vllm", "0.32"))),
        )
    except ValidationError as error:
        known = (*RecordedConfig.model_fields, *RecordedRequest.model_fields)
        raise InputError(first_error(error, str(path), known) + "; see docs/conform.md for the format") from None
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a recorded schedule ({error}); see docs/conform.md for the format") from error


def _unpacked(path: Path) -> bytes:
    """A recording's lines; InputError if they are more than any recording has."""
    with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise InputError(f"{path}: is larger than {_MOST_BYTES >> 20} MiB unpacked; record in several files")
    return raw


def _engine(version: str) -> str:
    """The engine whose rules version `0.MINOR.PATCH` of vLLM has; the nearest known one for a version beyond those."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if major > 0:
        return f"vllm-0.{LAST_MINOR}"
    return f"vllm-0.{min(max(minor, FIRST_MINOR), LAST_MINOR)}"


def limits_of(config: Json, engine: str = "vllm-0.32") -> Limits:
    """The recording's settings as the engine's, with the rules of an engine version."""
    dialect = dialect_of(engine)
    number = cast(dict[str, int], config)
    active = number.get("max_num_active_seqs")
    limits = Limits(
        max_num_batched_tokens=number["max_num_batched_tokens"],
        max_running=min(active, number["max_num_seqs"]) if active else number["max_num_seqs"],
        max_model_len=number["max_model_len"],
        block_size=number["block_size"],
        long_prefill_token_threshold=number["long_prefill_token_threshold"],
        adaptive_long_prefill=bool(config.get("long_prefill_token_threshold_adaptive")),
        lone_request_uncapped=dialect.lone_request_uncapped,
        chunked_prefill=bool(config["enable_chunked_prefill"]),
        prefix_caching=bool(config["enable_prefix_caching"]),
        ordering=PRIORITY if config["policy"] == "priority" else FCFS,
        preemptive=False,
        watermark_blocks=int(cast(float, config["watermark"]) * number["num_gpu_blocks"]),
        reserve_full_isl=bool(config["scheduler_reserve_full_isl"]),
        uncached_free_to_front=dialect.uncached_free_to_front,
        passed_over_counts=dialect.passed_over_counts,
        serves_past_self_victim=dialect.serves_past_self_victim,
        content_span=1,
        pipeline_depth=2 if config["async_scheduling"] else 1,
        speculative_tokens=number.get("num_speculative_tokens", 0),
        acceptance=cast(float, config.get("acceptance") or 0.0),
        acceptance_seed=number.get("acceptance_seed", 0),
        registers_accepted=dialect.registers_accepted,
        draft_padding=dialect.draft_padding,
    )
    method = cast(SpeculativeMethod, config.get("speculative_method") or "ngram")
    limits = drafting(limits, method, dialect, number["max_num_seqs"])
    retention = cast(int | None, config.get("prefix_cache_retention_interval"))
    checkpoints = bool(config.get("prefill_checkpoints"))
    groups = groups_of(config.get("kv_cache_groups"), limits.prefix_caching, checkpoints)
    return windowed(limits, groups, dialect, retention)


def replay(recording: Recording, engine: str | None = None) -> str | None:
    """The first difference between this engine's schedule and the recorded one, or None if every field is the same.

    `engine` names other rules than those of the version it was recorded with.
    """
    rows = sorted(recording.requests, key=lambda q: (cast(int, q["arr"]), cast(int, q["id"])))
    ids = np.array([cast(int, q["id"]) for q in rows])
    limits = limits_of(recording.config, engine or recording.engine)
    requests, content_ids = _requests(rows, limits.block_size, int(limits.hashes_next_token))
    num_blocks = cast(int, recording.config["num_gpu_blocks"])
    replica = new_replica(limits, requests, content_ids, _aborts(rows), num_blocks)
    expected = iter(recording.steps)
    most = len(recording.steps) + 1
    for step in _run(replica, ids, bool(recording.config["async_scheduling"]), most):
        wanted = next(expected, None)
        if wanted is None:
            return f"step {step['t']}: the recording has ended"
        for field in FIELDS:
            ours, theirs = step.get(field), wanted.get(field)
            if ours != theirs:
                return f"step {wanted.get('t')}: {field} is {ours}, recorded {theirs}"
    if next(expected, None) is not None:
        return "the recording goes on"
    free = int(replica.pool.counts[FREE_BLOCKS])
    return None if free == recording.free_at_end else f"end: {free} blocks free, recorded {recording.free_at_end}"


def _run(r: Replica, ids: NDArray[np.int64], asynchronous: bool, most: int) -> list[Json]:
    """Every step of a replica, up to `most` of them, in the recording's terms."""
    tables = constant_tables(r.limits.max_num_batched_tokens, r.limits.max_running)
    at = r.at
    steps: list[Json] = []
    in_flight: list[Json] = []
    t = 0
    while len(steps) < most:
        if at[UNFINISHED] == 0 and at[IN_FLIGHT] == 0 and at[FLUSH] == 0:
            if at[NEXT_ARRIVAL] == at[ROWS]:
                return steps
            t = max(t, int(r.requests.arrival_ns[at[NEXT_ARRIVAL]]))
        at[NOW] = t
        oldest, flying, delivered = int(at[OLDEST]), int(at[IN_FLIGHT]), _delivered(r)
        over = r.progress.status == FINISHED
        iterate(r, tables)
        popped = int(at[OLDEST]) != oldest
        if int(at[IN_FLIGHT]) - flying + popped == 1:
            in_flight.append(_planned(r, (oldest + flying) % 2, t, ids))
            steps.append(in_flight[-1])
        if popped:
            size = r.batches.length[oldest]
            batch = r.entries.request[oldest, :size]
            now_over = (r.progress.status == FINISHED) & ~over
            step = in_flight.pop(0)
            step["fin"] = [int(ids[q]) for q in batch if now_over[q]]
            step["gen"] = _delivered(r) - delivered
            step["free1"] = int(r.pool.counts[FREE_BLOCKS])
            step["run1"] = int(at[RUNNING_COUNT])
            if asynchronous:
                step["upd_t"] = t
        t += 1
    return steps


def _delivered(r: Replica) -> int:
    """Output tokens delivered so far to all requests."""
    arrived = r.progress.known > 0
    return int(r.progress.known[arrived].sum()) - int(r.requests.prompt[arrived].sum())


def _planned(r: Replica, row: int, t: int, ids: NDArray[np.int64]) -> Json:
    """A step as it was planned."""
    b = r.batches
    e = r.entries
    size = b.length[row]
    step: Json = {
        "t": t,
        "req": [int(ids[q]) for q in e.request[row, :size]],
        "n": e.tokens[row, :size].tolist(),
        "c0": e.before[row, :size].tolist(),
        "free0": int(b.free[row]),
        "run0": int(b.running[row]),
        "wait0": int(b.waiting[row]),
        "cached": int(b.distinct[row]),
    }
    before = dict(zip(e.request[row, :size].tolist(), e.before[row, :size].tolist(), strict=True))
    admitted = r.record.admitted[: r.at[ADMITTED]].tolist()
    for field, resumed in (("new", False), ("res", True)):
        entries = [[int(ids[q]), before[q]] for q in admitted if bool(r.progress.preemptions[q]) == resumed]
        if entries:
            step[field] = entries
    if r.at[PREEMPTED_NOW]:
        step["pre"] = [int(ids[q]) for q in r.record.victims[: r.at[PREEMPTED_NOW]]]
    return step


def _requests(rows: list[Json], block_size: int, beyond: int) -> tuple[Records, NDArray[np.int64]]:
    """The recording's requests, with an id for the content of every whole block of prompt and output.

    Content is the same only if the `beyond` tokens after the block are, too.
    """
    by_id = {cast(int, q["id"]): q for q in rows}
    known: dict[tuple[int, bytes], int] = {}
    content_ids: list[int] = []
    requests = records(len(rows), REQUEST)
    for i, q in enumerate(rows):
        prompt = np.concatenate([_segment_tokens(segment, by_id) for segment in cast(list[list[object]], q["segs"])])
        tokens = np.concatenate([prompt, _output_tokens(q, cast(int, q["out"]))])
        contents = (len(tokens) - beyond) // block_size
        asked = (q["arr"], len(prompt), q["out"], q["max_tokens"], q.get("prio", 0), q["max_tokens"], 0, NEVER)
        requests[i] = (*asked, len(content_ids), contents)
        parent = 0
        for k in range(contents):
            content = (parent, tokens[k * block_size : (k + 1) * block_size + beyond].tobytes())
            parent = known.setdefault(content, len(known) + 1)
            content_ids.append(parent)
    return requests, np.array(content_ids, dtype=np.int64)


def _aborts(rows: list[Json]) -> Records:
    """When clients cancel, in order; who cancels before they arrive cancels nothing."""
    times = sorted(
        (cast(int, q["abort"]), i) for i, q in enumerate(rows) if cast(int, q.get("abort", -1)) >= cast(int, q["arr"])
    )
    aborts = records(len(times), ABORT)
    for k, time_and_request in enumerate(times):
        aborts[k] = time_and_request
    return aborts


def _segment_tokens(segment: list[object], by_id: dict[int, Json]) -> NDArray[np.int64]:
    """The token ids of one segment of a prompt (the recordings' README)."""
    kind, source, length = cast(tuple[str, int, int], tuple(segment))
    if kind == "o":
        return _output_tokens(by_id[source], length)
    return (1 << 40) + source * (1 << 20) + np.arange(length, dtype=np.int64)


def _output_tokens(q: Json, length: int) -> NDArray[np.int64]:
    """The first `length` output tokens of a request."""
    identity, out, asked = (cast(int, q[name]) for name in ("id", "out", "max_tokens"))
    tokens = (1 << 50) + identity * (1 << 20) + np.arange(length, dtype=np.int64)
    if out < asked and length >= out:
        tokens[out - 1] = EOS_TOKEN
    return tokens
