"""What a fleet did with a workload: each replica's own result, whose request went where, and the accounts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from simkit.cluster.handover import HandoverTotals
from simkit.cluster.tiers import TierTotals
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.state import I32, I64
from simkit.metrics.front_end import with_front_end
from simkit.metrics.result import RequestColumns, RunResult, Status
from simkit.models.front_end import NO_FRONT_END
from simkit.workloads.workload import Workload


@dataclass(frozen=True)
class LifeSpan:
    """One replica from being asked for to its end; one that restarts begins another life. Times in ns."""

    number: int  # of the replica, kept over restarts
    pool: str
    gpus: int
    asked_ns: int  # from here on it is paid for
    ready_ns: int | None  # None: it never was
    ended_ns: int | None  # None: it was there at the end


@dataclass(frozen=True)
class Accounts:
    """Where all requests went: `arrived` is the sum of the five after it."""

    arrived: int
    finished: int
    rejected: int
    timed_out: int
    failed: int
    in_flight: int  # when the run ended
    never_asked: int  # of a session whose request before them was not answered; not among those that arrived
    attempts: int  # jobs sent or queued, for all requests: what the fleet saw
    retries: int  # of these, how many because a client tried again
    resent: int  # and how many because the gateway sent a lost request on


@dataclass(frozen=True)
class FleetResult:
    """A replica's result has its own requests only, in order of arrival there; `requests` has all, in the workload's.

    `requests` is what clients saw, front ends included: `arrival_ns` when they first asked, `queue_ns` from then on
    until the answering replica first computed some of it, retries and waiting at the door included; `outside_ns` is
    that part of it.
    """

    router: str
    replicas: tuple[RunResult, ...]  # one a life
    lives: tuple[LifeSpan, ...]
    requests: RequestColumns  # [n] of the whole workload
    replica_of: I32  # [n] the life, index in `replicas`, that a request was sent to last; -1: it was not sent
    row_of: I64  # [n] its row in that replica's result; meaningless where `replica_of` is -1
    outside_ns: I64  # [n] from its arrival until that replica had it
    accounts: Accounts
    end_ns: int  # when the last request was over and the last step had ended
    complete: bool  # False: interrupted
    handover: HandoverTotals | None = None  # where prefill and decode are apart
    prefill_of: I32 | None = None  # [n] then the life that was to compute the prompt for another; -1: none was
    tiers: tuple[TierTotals, ...] = ()  # of KV behind the device caches, the fastest first

    def gpu_ns(self) -> int:
        """GPUs times ns that were paid for, exactly."""
        return sum(
            life.gpus * ((self.end_ns if life.ended_ns is None else life.ended_ns) - life.asked_ns)
            for life in self.lives
        )


class Seen(NamedTuple):
    """What the door knows of each request; [n], ns."""

    status: "np.ndarray[tuple[int, ...], np.dtype[np.int8]]"  # Status
    arrived_ns: I64  # -1: it never asked
    sent_ns: I64  # to the replica that had it last; -1: to none
    over_ns: I64
    first_token_ns: I64  # of an earlier attempt that was taken up again; 0: none
    generated: I64  # tokens that earlier attempts delivered and the last one goes on from

    def columns(self, found: RequestColumns, workload: Workload) -> tuple[RequestColumns, I64]:
        """The columns of the last replicas as clients saw them, and the time [n] before that replica had each."""
        came = self.arrived_ns >= 0
        outside = np.where(came & (self.sent_ns >= 0), self.sent_ns - self.arrived_ns, 0)
        finished = self.status == Status.FINISHED
        unanswered = np.isin(self.status, (Status.UNFINISHED, Status.REJECTED))
        started = found.scheduled_ns > 0
        return replace(
            found,
            status=self.status,
            arrival_ns=np.where(came, self.arrived_ns, workload.arrival_us * 1000),
            prompt_tokens=workload.prompt_tokens,
            output_tokens=workload.output_tokens,
            generated_tokens=(found.generated_tokens + self.generated).astype(np.int32),
            first_token_ns=np.where(self.first_token_ns > 0, self.first_token_ns, found.first_token_ns),
            finish_ns=np.where(unanswered, 0, self.over_ns),
            queue_ns=np.where(finished | started, found.queue_ns + outside, 0),
        ), outside


def seen_by_clients(fleet: FleetResult, specs: Sequence[ReplicaSpec]) -> FleetResult:
    """The fleet with what the front ends of `specs`, one a life, make the clients wait for.

    It goes into `requests` only: the replicas' own results, and all that was decided while time went on (deadlines, the
    next question of a session), are by the times of the engines.
    """
    # -1, of a request that was sent nowhere, is the last row
    laws = [*(spec.front_end for spec in specs), NO_FRONT_END]
    per_life = np.array(laws, dtype=np.float64)[fleet.replica_of]
    front_end_ns = np.rint(per_life[:, 0] + per_life[:, 1] * fleet.requests.prompt_tokens).astype(np.int64)
    return replace(fleet, requests=with_front_end(fleet.requests, front_end_ns))


def accounts_of(
    status: "np.ndarray[tuple[int, ...], np.dtype[np.int8]]",
    arrived: int,
    attempts: int,
    retries: int,
    never_asked: int = 0,
) -> Accounts:
    """The accounts of requests of which `arrived` did arrive; the others are UNFINISHED in `status`."""
    count = {value: int(np.count_nonzero(status == value)) for value in Status}
    over = len(status) - count[Status.UNFINISHED]
    return Accounts(
        arrived=arrived,
        finished=count[Status.FINISHED],
        rejected=count[Status.REJECTED],
        timed_out=count[Status.TIMED_OUT],
        failed=count[Status.FAILED],
        in_flight=arrived - over,
        never_asked=never_asked,
        attempts=attempts,
        retries=retries,
        resent=attempts - arrived - retries,
    )


def rows_of_each(replica_of: I32 | I64, count: int) -> list[I64]:
    """The rows, ascending, at which `replica_of` [n] names each of `count` replicas; -1 names none.

    In one pass: looking for each replica by itself takes time in proportion to n times `count`.
    """
    order = np.argsort(replica_of, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(replica_of.astype(np.int64) + 1, minlength=count + 1))
    return np.split(order, ends)[1 : count + 1]


def merged_columns(workload: Workload, parts: list[tuple[I64, I64, RequestColumns]]) -> RequestColumns:
    """Columns in the workload's order from (rows of the workload, rows there, columns) of each replica.

    What no part has stays unfinished, all times 0.
    """
    n = len(workload)
    columns: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.signedinteger]]] = {
        "arrival_ns": workload.arrival_us * 1000,
        "prompt_tokens": workload.prompt_tokens,
        "output_tokens": workload.output_tokens,
    }
    for name in (field.name for field in fields(RequestColumns)):
        if name == "request_id" or name in columns:
            continue
        columns[name] = np.zeros(n, dtype=getattr(parts[0][2], name).dtype if parts else np.int64)
        for rows, there, found in parts:
            columns[name][rows] = getattr(found, name)[there]
    return RequestColumns(request_id=workload.request_id, **columns)


def plain_fleet(
    router: str,
    workload: Workload,
    parts: Sequence[tuple[I64, RunResult]],
    specs: Sequence[ReplicaSpec],
    complete: bool,
) -> FleetResult:
    """The result of a fleet that was there from the start to the end and had no door: from each replica's rows."""
    n = len(workload)
    replica_of = np.full(n, -1, dtype=np.int32)
    row_of = np.zeros(n, dtype=np.int64)
    columns = []
    for replica, (rows, result) in enumerate(parts):
        replica_of[rows] = replica
        row_of[rows] = np.arange(len(rows))
        columns.append((rows, row_of[rows], result.requests))
    requests = merged_columns(workload, columns)
    sent = int(np.count_nonzero(replica_of >= 0))
    fleet = FleetResult(
        router=router,
        replicas=tuple(result for _, result in parts),
        lives=tuple(LifeSpan(i, "default", spec.deployment.layout.gpus, 0, 0, None) for i, spec in enumerate(specs)),
        requests=requests,
        replica_of=replica_of,
        row_of=row_of,
        outside_ns=np.zeros(n, dtype=np.int64),
        accounts=accounts_of(requests.status, sent, sent, 0),
        end_ns=max([int(requests.arrival_ns.max(initial=0)), *(result.end_ns for _, result in parts)]),
        complete=complete,
    )
    return seen_by_clients(fleet, specs)
