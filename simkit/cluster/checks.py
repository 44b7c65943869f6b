"""The rules that every fleet keeps, checked on its result: whatever broke down, nothing is lost from the accounts."""

import numpy as np

from simkit.cluster.result import FleetResult
from simkit.engine.violation import Violation
from simkit.metrics.result import WATERFALL, RunResult, Status
from simkit.workloads.workload import Workload

BALANCE = "arrived = finished + rejected + timed out + failed + in flight"
WHOLE = "who is finished has all tokens"
ONCE = "answered once"
TIMES = "times in order"
LATENCY = "parts add up to the latency"
BLOCKS = "no block leaked"
ENDED = "the run ends with nobody in flight"
PAID = "GPU time is that of the lives"
PARTS = "no part of the latency is negative"
MOVED = "KV owed was moved or given up"
HELD = "a tier holds what was written and not evicted"


def check_fleet(fleet: FleetResult, workload: Workload) -> None:
    """Raise Violation for the first rule that a complete run has broken."""
    _check_accounts(fleet, workload)
    _check_requests(fleet, workload)
    _check_moved(fleet)
    for index, (life, result) in enumerate(zip(fleet.lives, fleet.replicas, strict=True)):
        if life.ended_ns is None and life.ready_ns is not None and result.blocks_free_at_end != result.blocks:
            raise Violation(BLOCKS, index, None, f"{result.blocks_free_at_end} of {result.blocks} are free at the end")
        _check_computed(index, result)
    paid = sum(
        life.gpus * ((fleet.end_ns if life.ended_ns is None else life.ended_ns) - life.asked_ns) for life in fleet.lives
    )
    if paid != fleet.gpu_ns() or any(
        life.ended_ns is not None and life.ended_ns < life.asked_ns for life in fleet.lives
    ):
        raise Violation(PAID, 0, None, f"{fleet.gpu_ns()} ns are not {paid}")


def _check_accounts(fleet: FleetResult, workload: Workload) -> None:
    accounts = fleet.accounts
    over = accounts.finished + accounts.rejected + accounts.timed_out + accounts.failed
    if accounts.arrived != over + accounts.in_flight or accounts.in_flight < 0:
        raise Violation(BALANCE, 0, None, str(accounts))
    if accounts.arrived + accounts.never_asked > len(workload):
        raise Violation(BALANCE, 0, None, f"{accounts} of {len(workload)} requests")
    if fleet.complete and accounts.in_flight > 0:
        raise Violation(ENDED, 0, None, f"{accounts.in_flight} are in flight")
    if accounts.attempts != accounts.arrived + accounts.retries + accounts.resent or accounts.resent < 0:
        raise Violation(BALANCE, 0, None, f"attempts: {accounts}")


def _check_requests(fleet: FleetResult, workload: Workload) -> None:
    columns = fleet.requests
    finished = columns.status == Status.FINISHED
    short = finished & (columns.generated_tokens != workload.output_tokens)
    if short.any():
        request = int(short.argmax())
        raise Violation(WHOLE, 0, request, f"has {columns.generated_tokens[request]} tokens")
    answers = np.zeros(len(workload), dtype=np.int64)
    for life, result in enumerate(fleet.replicas):
        mine = np.flatnonzero(finished & (fleet.replica_of == life))
        answers[mine] += result.requests.status[fleet.row_of[mine]] == Status.FINISHED
    # one whose tokens were all out when its replica was lost was answered before
    wrong = finished & (answers != 1) & (fleet.replica_of >= 0)
    if wrong.any():
        raise Violation(ONCE, 0, int(wrong.argmax()), f"was answered {answers[wrong][0]} times")
    late = finished & ~((columns.arrival_ns <= columns.first_token_ns) & (columns.first_token_ns <= columns.finish_ns))
    if late.any():
        raise Violation(TIMES, 0, int(late.argmax()), "arrival, first token and end are not in this order")
    for part in WATERFALL:
        negative = finished & (getattr(columns, part) < 0)
        if negative.any():
            raise Violation(PARTS, 0, int(negative.argmax()), f"{part} is {getattr(columns, part).min()}")
    parts = np.sum([getattr(columns, part) for part in WATERFALL], axis=0)
    gap = finished & (fleet.replica_of >= 0) & (parts != columns.finish_ns - columns.arrival_ns)
    if gap.any():
        raise Violation(LATENCY, 0, int(gap.argmax()), "its waterfall is not its latency")


def _check_moved(fleet: FleetResult) -> None:
    """What went over links is what had to, as far as it was not given up."""
    moved = fleet.handover
    if fleet.complete and moved is not None and moved.bytes_moved + moved.bytes_given_up != moved.bytes_owed:
        raise Violation(MOVED, 0, None, str(moved))
    for tier in fleet.tiers:
        if tier.held_bytes != tier.written_bytes - tier.evicted_bytes:
            raise Violation(HELD, 0, None, str(tier))


def _check_computed(life: int, result: RunResult) -> None:
    """A replica computed at least what it delivered."""
    delivered = int(result.requests.generated_tokens.sum())
    if result.computed_tokens < delivered - len(result.requests):
        raise Violation(WHOLE, life, None, f"computed {result.computed_tokens}, delivered {delivered} tokens")
