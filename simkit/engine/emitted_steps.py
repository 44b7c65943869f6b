"""The batches that a scheduler forms for a workload, one after the other: what kernels will be asked for."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from simkit.engine.replica import new_replica
from simkit.engine.simulate import load, span_of
from simkit.engine.state import (
    ABORT,
    NEXT_ARRIVAL,
    ROWS,
    UNFINISHED,
    Limits,
    Replica,
    records,
)
from simkit.engine.stepping import complete, plan
from simkit.models.steptables import StepTables, interpolate, uneven_ns
from simkit.workloads.workload import Workload


class Share(NamedTuple):
    """One request's part in a step."""

    new: int  # tokens computed now
    before: int  # tokens computed before
    samples: bool  # whether it gets a token


def emitted_steps(
    workload: Workload, limits: Limits, tables: StepTables, num_blocks: int, most: int
) -> Iterator[tuple[Share, ...]]:
    """The first `most` steps of a workload on one replica of vLLM V1, each as long as `tables` say.

    Raises InputError where the workload's content does not fit the block size.
    """
    limits = limits._replace(pipeline_depth=1, content_span=span_of(workload.prefixes, limits))
    fits = workload.prompt_tokens.astype(np.int64) + workload.output_tokens <= limits.max_model_len
    requests, content_ids = load(workload, np.flatnonzero(fits), limits)
    replica = new_replica(limits, requests, content_ids, records(0, ABORT), num_blocks)
    at = replica.at
    now_ns, steps = 0, 0
    while steps < most:
        if at[UNFINISHED] == 0:
            if at[NEXT_ARRIVAL] == at[ROWS]:
                return
            now_ns = max(now_ns, int(replica.requests["arrival_ns"][at[NEXT_ARRIVAL]]))
        row = plan(replica, now_ns)
        shares = _shares(replica, row)
        device_ns = _step_ns(shares, tables) if shares else 0
        complete(replica, row, 0, device_ns)
        now_ns += max(device_ns, 1)
        if shares:
            steps += 1
            yield shares


def _shares(replica: Replica, row: int) -> tuple[Share, ...]:
    entries = replica.entries[row, : int(replica.batches["length"][row])].tolist()
    return tuple(Share(new, before, bool(samples)) for _, new, before, samples in entries)


def _step_ns(shares: tuple[Share, ...], tables: StepTables) -> int:
    """About how long a step takes; windows are left out, since only the load hangs on it."""
    decodes = [share.before + 1 for share in shares if share.new == 1]
    total = tables.linear_ns[sum(share.new for share in shares)]
    total += tables.sample_ns[sum(share.samples for share in shares)] + tables.host_ns[len(shares)]
    if decodes:
        even = interpolate(tables.decode_ns, len(decodes), sum(decodes))
        total += even + uneven_ns(tables, len(decodes), sum(decodes), max(decodes), even)
    for share in shares:
        if share.new > 1:
            total += interpolate(tables.prefill_ns, share.new, share.before)
    return int(total)
