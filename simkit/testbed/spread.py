"""The virtual clock with steps that scatter as those of the calibration did.

A table says what a step takes on average. Real ones scatter around it, and in stretches: for a second somebody else
has the memory's bandwidth. Medians hardly notice; the 90th percentile of the times between tokens is made of it. So a
step takes here what its table says times a factor, measured over expected, of a step of the calibration, whose logs
are gone through one after the other in random order: stretches stay stretches, and the mean of all factors is one.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from simkit.engine.discipline import engine
from simkit.engine.replica import new_replica
from simkit.engine.simulate import load, result_of, span_of
from simkit.engine.state import ABORT, FLUSH, IN_FLIGHT, NEXT_ARRIVAL, NOW, ROWS, UNFINISHED, records
from simkit.engine.stepping import begin, expected_ns, finish
from simkit.metrics.result import RunResult
from simkit.models.steptables import StepTables
from simkit.testbed.measured import MeasuredRun

F64 = NDArray[np.float64]


def predicted_with_spread(run: MeasuredRun, tables: StepTables, factors: Sequence[F64], seed: int = 0) -> RunResult:
    """The same arrivals served on the virtual clock; `factors` has those of each log, [steps].

    With all factors 1 it is `replay.predicted`, but for what of a step's time its prompts took.
    """
    limits = run.limits._replace(content_span=span_of(run.workload.prefixes, run.limits))
    total = run.workload.prompt_tokens.astype(np.int64) + run.workload.output_tokens
    rows = np.flatnonzero(total <= limits.max_model_len)
    requests, content = load(run.workload, rows, limits)
    replica = new_replica(limits, requests, content, records(0, ABORT), run.num_blocks)
    plan, at, drawn = engine(run.discipline).plan, replica.at, drawn_factors(factors, seed)
    while True:
        if at[UNFINISHED] == 0 and at[FLUSH] == 0:
            if at[IN_FLIGHT]:  # a step that nobody is in
                finish(replica)
                continue
            if at[NEXT_ARRIVAL] == at[ROWS]:
                return result_of(replica, run.workload, rows, True)
            at[NOW] = max(at[NOW], replica.requests["arrival_ns"][at[NEXT_ARRIVAL]])
        row = plan(replica, at[NOW])
        somebody = bool(replica.batches["length"][row])
        host, device = expected_ns(replica, tables, row)
        begin(replica, row, host, round(device * next(drawn)) if somebody else device)
        if not somebody or at[IN_FLIGHT] == limits.pipeline_depth:
            finish(replica)


def drawn_factors(factors: Sequence[F64], seed: int) -> Iterator[float]:
    """Each log's factors in their order, log after log in random order, again and again."""
    rng = np.random.default_rng((seed, 0x5EAD))
    kept = [each for each in factors if len(each)]
    while kept:
        for index in rng.permutation(len(kept)).tolist():
            yield from kept[index].tolist()
