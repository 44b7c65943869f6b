"""A measured run as a file, `simkit-measured-run-1`: JSON lines, gzip'd where the name ends in .gz.

A header, then a `request` line each (arrival, lengths, token times), then a `step` line each (`batch`: request id,
tokens scheduled, tokens computed before). Times are seconds from the start of the run. The header of a run that was
cut short says so: `partial` holds the reason.
"""

import gzip
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from simkit.errors import InputError
from simkit.metrics.result import Status
from simkit.testbed.measured import MeasuredRun, MeasuredStep

FORMAT = "simkit-measured-run-1"


def write_measured_run(run: MeasuredRun, path: Path) -> None:
    """Write a run, whole or cut short; raises InputError where the file cannot be written."""
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines(run))
    data = text.encode()
    try:
        # without a time in it, equal runs are equal files
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # half a log is none
        raise InputError(f"{path}: {(error.strerror or 'cannot be written').lower()}; choose another place") from None


def lines(run: MeasuredRun) -> Iterator[dict[str, object]]:
    """The lines of the file as objects."""
    yield _header(run)
    for row in range(len(run.workload)):
        if run.result.requests.status[row] != Status.REJECTED:
            yield _request(run, row)
    for step in run.steps:
        yield _step(run, step)


def _header(run: MeasuredRun) -> dict[str, object]:
    limits, identity = run.limits, run.identity
    caching = "on" if limits.prefix_caching else "off"
    overlap = "on" if run.asynchronous else "off"
    draft = f", {limits.speculative_tokens} drafts" if limits.speculative_tokens else ""
    header: dict[str, object] = {
        "kind": "header",
        "format": FORMAT,
        "engine": f"{identity.engine}, {run.discipline}, async scheduling {overlap}, prefix caching {caching}{draft}",
        "model": dict(identity.model),
        "device": identity.device,
        "versions": dict(identity.versions),
        "block_size": limits.block_size,
        "num_gpu_blocks": run.num_blocks,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "max_num_seqs": limits.max_running,
        "async_scheduling": run.asynchronous,
        "time_unit": "s from the start of the run",
    }
    if run.failure:
        header["partial"] = run.failure
    return header


def _request(run: MeasuredRun, row: int) -> dict[str, object]:
    times = [_seconds(time_ns) for time_ns in run.token_ns[row].tolist()]
    line: dict[str, object] = {
        "kind": "request",
        "id": _id(run, row),
        "arrival": int(run.workload.arrival_us[row]) / 1e6,
        "prompt_tokens": int(run.workload.prompt_tokens[row]),
        "output_tokens": int(run.workload.output_tokens[row]),
        "token_times": times,
    }
    if run.result.requests.status[row] == Status.FINISHED:
        line["end"] = times[-1]
    return line


def _step(run: MeasuredRun, step: MeasuredStep) -> dict[str, object]:
    return {
        "kind": "step",
        "schedule_start": _seconds(step.schedule_start_ns),
        "schedule_end": _seconds(step.schedule_end_ns),
        "update_start": _seconds(step.update_start_ns),
        "update_end": _seconds(step.update_end_ns),
        "batch": [[_id(run, row), tokens, before] for row, tokens, before in step.batch],
        "waiting": step.waiting,
        "free_blocks": step.free_blocks,
    }


def _id(run: MeasuredRun, row: int) -> str:
    return str(row) if run.workload.request_id is None else run.workload.request_id[row]


def _seconds(time_ns: int) -> float:
    """To the nanosecond, so that durations can be had back exactly."""
    return round(time_ns / 1e9, 9)
