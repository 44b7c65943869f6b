"""A replica that runs only as far as somebody looks.

It is no SimPy process: it is given requests as they arrive and runs, in the compiled loop, up to the moment at which
its state is asked for. A replica that nobody asks serves all its requests in one call at the end.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.cluster.growth import enlarged, trimmed
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.discipline import engine
from simkit.engine.loop import MORE
from simkit.engine.predictor import PredictorSpec
from simkit.engine.replica import new_replica
from simkit.engine.simulate import ITERATIONS_A_CALL, load, result_of, span_of
from simkit.engine.state import (
    ABORT,
    I64,
    NEVER,
    NEXT_ARRIVAL,
    NOW,
    OLDEST,
    REQUEST,
    ROWS,
    TENANT,
    UNFINISHED,
    Limits,
    Records,
    records,
)
from simkit.metrics.result import RunResult
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload


class Offered(NamedTuple):
    """A workload as a replica with certain limits takes it."""

    limits: Limits  # with the workload's content span
    requests: Records  # REQUEST [n]
    content_ids: I64
    fits: NDArray[np.bool_]  # [n] False: longer than the context, turned away at the door (vLLM's API server: 400)


class Offers:
    """A workload, translated once for all replicas that take it the same way."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._known: dict[tuple[Limits, PredictorSpec, int | None], Offered] = {}

    def to(self, spec: ReplicaSpec) -> Offered:
        """What a replica of a deployment is offered."""
        limits, settings = spec.limits, spec.deployment.engine
        key = (limits, settings.predictor, settings.max_tokens)
        if key not in self._known:
            workload = self.workload
            spanned = limits._replace(content_span=span_of(workload.prefixes, limits))
            rows = np.arange(len(workload), dtype=np.int64)
            fits = workload.prompt_tokens.astype(np.int64) + workload.output_tokens <= limits.max_model_len
            loaded = load(workload, rows, spanned, settings.predictor, settings.max_tokens)
            self._known[key] = Offered(spanned, *loaded, fits)
        return self._known[key]


class LazyReplica:
    """One replica of a fleet; times are ns from the workload's start."""

    def __init__(self, spec: ReplicaSpec, offers: Offers, room: int) -> None:
        """A replica that has computed nothing, with room for `room` requests before it must grow."""
        self._workload = offers.workload
        self._offered = offers.to(spec)
        self._tables = spec.tables
        self._engine = engine(spec.deployment.engine.discipline)
        limits, _, content_ids, _ = self._offered
        empty = new_replica(limits, records(max(1, room), REQUEST), content_ids, records(0, ABORT), spec.num_blocks)
        # sized by requests that are still to be given
        tenants = int(self._offered.requests["tenant"].max(initial=0)) + 1
        self._replica = empty._replace(tenants=records(tenants, TENANT))
        self._replica.at[ROWS] = 0
        self._given: list[int] = []  # rows of the workload, in order of arrival
        self._idle = True
        # requests that the latest step ends beyond the moment looked at, and when
        self._late = 0
        self._late_ns = 0

    def give(self, rows: I64) -> None:
        """Requests of the workload, by row, in order of arrival, none before those already given."""
        self._given.extend(rows.tolist())
        rows = rows[self._offered.fits[rows]]
        first = int(self._replica.at[ROWS])
        end = first + len(rows)
        if end > len(self._replica.requests):
            self._replica = enlarged(self._replica, max(end, 2 * first))
        self._replica.requests[first:end] = self._offered.requests[rows]
        self._replica.at[ROWS] = end
        self._idle = self._idle and first == end

    def give_one(self, row: int) -> None:
        """One request of the workload: `give` without the cost of arrays."""
        self._given.append(row)
        if not self._offered.fits[row]:
            return
        end = int(self._replica.at[ROWS])
        if end == len(self._replica.requests):
            self._replica = enlarged(self._replica, 2 * end)
        self._replica.requests[end] = self._offered.requests[row]
        self._replica.at[ROWS] = end + 1
        self._idle = False

    def outstanding(self, now_ns: int) -> int:
        """Requests given and not yet answered at `now_ns`; looks must not go back in time."""
        # what arrives at `now_ns` itself is still to be given: stop short of it
        self._advance(now_ns - 1)
        at = self._replica.at
        unfinished = int(at[UNFINISHED] + at[ROWS] - at[NEXT_ARRIVAL])
        return unfinished + (self._late if self._late_ns > now_ns else 0)

    def finish(self) -> None:
        """Serve all that was given."""
        self._advance(NEVER)

    def result(self, complete: bool) -> tuple[I64, RunResult]:
        """The workload's rows that this replica was given, and what became of them, in this order."""
        rows = np.array(self._given, dtype=np.int64)
        mine = selected(self._workload, rows)
        accepted = np.flatnonzero(self._offered.fits[rows])
        return rows, result_of(trimmed(self._replica, len(accepted)), mine, accepted, complete)

    def _advance(self, until_ns: int) -> None:
        """Run every turn that begins at or before `until_ns`."""
        r = self._replica
        if self._idle or r.at[NOW] > until_ns:
            return
        state = MORE
        while state == MORE:
            state = self._engine.advance(r, self._tables, until_ns, ITERATIONS_A_CALL)
        self._idle = bool(r.at[ROWS] == r.at[NEXT_ARRIVAL] and r.at[UNFINISHED] == 0)
        # the last turn may have committed a step that ends after `until_ns`: whom it finishes is still here till then
        row = int(r.at[OLDEST]) ^ 1
        batch = r.entries["request"][row, : int(r.batches["length"][row])]
        self._late = int(np.count_nonzero(r.ledger["finish"][batch] > until_ns))
        self._late_ns = int(r.batches["end"][row])
