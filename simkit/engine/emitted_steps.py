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
from simkit.engine.stepping import complete, expected_ns, plan
from simkit.models.steptables import StepTables
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
        step_ns = sum(expected_ns(replica, tables, row)) if shares else 0
        complete(replica, row, 0, step_ns)
        now_ns += max(step_ns, 1)
        if shares:
            steps += 1
            yield shares


def _shares(replica: Replica, row: int) -> tuple[Share, ...]:
    entries = replica.entries[row, : int(replica.batches["length"][row])].tolist()
    return tuple(Share(new, before, bool(samples)) for _, new, before, samples in entries)
