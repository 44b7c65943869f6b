"""What must hold after every step, whatever the discipline: a checker to run beside the loop, from Python.

    checker = Checker(replica)
    checker.before_step(replica)
    iterate(replica, tables)
    checker.after_step(replica)     # raises Violation, which names the rule, the step and the request

It reads the arrays only, so it serves the compiled loop, the interpreted one, and whoever steps a replica by hand.
Rules of memory are in `simkit.engine.block_checks`.
"""

import numpy as np

from simkit.engine.block_checks import check_blocks, check_cache, check_tables, check_windows
from simkit.engine.ring import rows_of
from simkit.engine.state import (
    ABORTED,
    COMPUTED_TOKENS,
    DECODE,
    DEVICE_FREE,
    ENTRY,
    FINISHED,
    FREE_BLOCKS,
    I64,
    IN_FLIGHT,
    NEXT_ARRIVAL,
    OLDEST,
    PAD_NOBODY,
    PAD_OR_WAIT,
    PENDING,
    PREEMPTED,
    RUNNING,
    RUNNING_COUNT,
    STEPS,
    SUM_DECODE,
    SUM_EXTRA,
    SUM_HOST,
    UNFINISHED,
    WAITING,
    WAITING_COUNT,
    Records,
    Replica,
    records,
)
from simkit.engine.violation import (
    ACCOUNTED,
    BUDGET,
    DUE,
    ENDS,
    GIVEN_BACK,
    MEMORY,
    ONCE,
    ORDER,
    PLACES_KEPT,
    PROGRESS_MADE,
    QUEUES,
    STARVED,
    TIME_ACCOUNTED,
    Violation,
)

MOST_EMPTY_TURNS = 100  # turns in a row that compute nothing though somebody waits and nothing is in flight
MOST_OVERTAKEN = 100  # later requests that may end while one gets no token, under first come first served


class Checker:
    """Follows one replica from step to step and raises Violation at the first rule that breaks.

    `most_overtaken` bounds starvation: how many requests that arrived later may end before one gets another token;
    None where the ordering itself makes some wait (priorities, deadlines ..).
    """

    def __init__(self, r: Replica, most_overtaken: int | None = None) -> None:
        self.most_overtaken = most_overtaken
        self._empty_turns = 0
        self._overtaken: I64 = r.requests["arrival_ns"] * 0
        self.before_step(r)

    def before_step(self, r: Replica) -> None:
        """Note where everybody stands."""
        self._progress: Records = r.progress.copy()
        self._at: I64 = r.at.copy()
        self._row = int((r.at[OLDEST] + r.at[IN_FLIGHT]) % rows_of(r.limits))

    def after_schedule(self, r: Replica, row: int) -> None:
        """Check a batch before it is sealed, where one can get in between: later rules then meet no wild batch."""
        step = int(self._at[STEPS]) + 1
        entries = _entries(r, row)
        self._check_shares(r, entries, step)
        self._check_batch(r, entries, step)
        check_blocks(r, step)

    def after_step(self, r: Replica) -> None:
        """Check the step planned since `before_step`, what was given out in it, and what is held now."""
        step = int(self._at[STEPS]) + 1
        planned = int(r.at[STEPS]) > int(self._at[STEPS])
        check_tables(r, step)
        check_blocks(r, step)
        if r.limits.prefix_caching:
            check_cache(r, step)
        self._check_queues(r, step)
        entries = _entries(r, self._row) if planned else records(0, ENTRY)
        self._check_shares(r, entries, step)
        self._check_batch(r, entries, step)
        self._check_tokens(r, entries, step)
        self._check_time(r, step)
        self._check_motion(r, entries, step)

    def _check_batch(self, r: Replica, entries: Records, step: int) -> None:
        """The batch as a whole: its size, its tokens, nobody twice, and in order."""
        limits = r.limits
        if len(entries) > limits.max_running:
            raise Violation(PLACES_KEPT, step, None, f"{len(entries)} in a batch, at most {limits.max_running}")
        tokens = int(entries["tokens"].sum())
        most = limits.max_num_batched_tokens - limits.draft_reserve - limits.draft_slots * len(entries)
        if tokens > most and len(entries) > 0:
            raise Violation(BUDGET, step, int(entries["request"][-1]), f"{tokens} tokens given, at most {most}")
        seen: set[int] = set()
        for request in entries["request"].tolist():
            if request in seen:
                raise Violation(ONCE, step, request, "is in the batch twice")
            seen.add(request)
        # who ended in this step has left `running`; the others are in it in the same order
        place = {request: i for i, request in enumerate(r.running[: r.at[RUNNING_COUNT]].tolist())}
        last = -1
        for request in entries["request"].tolist():
            if place.get(request, last) < last:
                raise Violation(ORDER, step, request, "is in the batch behind one that began to run later")
            last = place.get(request, last)

    def _check_shares(self, r: Replica, entries: Records, step: int) -> None:
        """Each request's share: it runs, is due that much, starts where it stands, and has the memory for it."""
        for request, tokens, before, _ in entries.tolist():
            now, then = r.progress[request], self._progress[request]
            if now["status"] not in (RUNNING, FINISHED):
                raise Violation(DUE, step, request, "was given tokens without being admitted")
            stood = int(then["computed"]) if then["status"] == RUNNING and self._stayed(r, request) else None
            if stood is not None and before != stood:
                raise Violation(DUE, step, request, f"begins at token {before}, but {stood} were computed before")
            due = self._due(r, request, int(before), stood is not None)
            if not 1 <= tokens <= due:
                raise Violation(DUE, step, request, f"was given {tokens} tokens, due were {due}")
            room = int(now["held"]) * r.limits.block_size
            ahead = r.limits.lookahead_tokens if stood is not None else r.limits.admission_lookahead_tokens
            needed = min(before + tokens + ahead, r.limits.max_model_len)
            if now["status"] == RUNNING and room < needed:
                raise Violation(MEMORY, step, request, f"{needed} tokens in blocks for {room}")
            if now["status"] == RUNNING and r.limits.window_groups > 0:
                flying = int(then["unsettled"]) if stood is not None and r.limits.frees_settled else 0
                check_windows(r, request, int(before), max(0, int(before) - flying), step)

    def _stayed(self, r: Replica, request: int) -> bool:
        return int(r.progress["preemptions"][request]) == int(self._progress["preemptions"][request])

    def _due(self, r: Replica, request: int, before: int, ran: bool) -> int:
        """Tokens that a request could be given when the step was planned: those known, or sampled and in flight."""
        asked, then = r.requests[request], self._progress[request]
        known = int(asked["prompt"]) if then["status"] == PENDING else int(then["known"])
        placeholders = int(then["placeholders"]) if ran else 0
        # of the tokens in flight the one after the drafts is sure
        if known + min(placeholders, 1) >= int(asked["prompt"]) + int(asked["max_tokens"]):
            return 0  # its last token is in flight
        due = known + placeholders - before
        last = r.limits.max_model_len - 1
        drafts = then["phase"] == DECODE if ran else r.limits.draft_padding != PAD_NOBODY
        if due == 1 and drafts:
            due += r.limits.speculative_tokens
            # of empty drafts the first version let the last lie where no token can follow
            last += int(not ran and r.limits.draft_padding == PAD_OR_WAIT)
        return min(due, last - before)

    def _check_queues(self, r: Replica, step: int) -> None:
        """Everybody who arrived is in `running`, in the queue, or over, and in one place only."""
        status = r.progress["status"]
        count = int(r.at[RUNNING_COUNT])
        if not 0 <= count <= r.limits.max_running:
            raise Violation(PLACES_KEPT, step, None, f"{count} requests run, at most {r.limits.max_running}")
        running = r.running[:count].tolist()
        for request in running:
            if running.count(request) > 1 or status[request] != RUNNING:
                raise Violation(QUEUES, step, request, "is in `running` twice, or is there without running")
        for request in (status == RUNNING).nonzero()[0].tolist():
            if request not in running:
                raise Violation(QUEUES, step, request, "runs but is not in `running`")
        waiting = int(((status == WAITING) | (status == PREEMPTED)).sum())
        if waiting != r.at[WAITING_COUNT]:
            raise Violation(QUEUES, step, None, f"{waiting} requests wait, the queue counts {r.at[WAITING_COUNT]}")
        if waiting + count != r.at[UNFINISHED]:
            raise Violation(QUEUES, step, None, f"{waiting + count} wait or run, {r.at[UNFINISHED]} are unfinished")

    def _check_tokens(self, r: Replica, entries: Records, step: int) -> None:
        """Computed tokens grow by what was given and by nothing else; a step delivers one token a request at most, and
        one for each of its drafts. Of those that were checked what was accepted counts as computed.
        """
        given = dict(zip(entries["request"].tolist(), entries["tokens"].tolist(), strict=True))
        begun = dict(zip(entries["request"].tolist(), entries["before"].tolist(), strict=True))
        if int(r.at[COMPUTED_TOKENS] - self._at[COMPUTED_TOKENS]) != sum(given.values()):
            raise Violation(ACCOUNTED, step, None, "the count of computed tokens is not what the batch was given")
        for request in range(int(r.at[NEXT_ARRIVAL])):
            now, then = r.progress[request], self._progress[request]
            known = int(then["known"]) or int(r.requests["prompt"][request])
            delivered = int(now["known"]) - known
            if not 0 <= delivered <= 1 + r.limits.speculative_tokens:
                raise Violation(ACCOUNTED, step, request, f"{delivered} tokens delivered in a step")
            if now["status"] != RUNNING:
                continue
            stayed = then["status"] == RUNNING and self._stayed(r, request)
            start = int(then["computed"]) if stayed else begun.get(request, int(now["computed"]))
            end = start + given.get(request, 0)
            if r.limits.speculative_tokens > 0 and delivered > 0:
                end = int(now["known"]) + int(now["placeholders"]) - 1
            if int(now["computed"]) != end:
                raise Violation(ACCOUNTED, step, request, f"stands at {now['computed']}, not {end}")

    def _check_time(self, r: Replica, step: int) -> None:
        if r.at[SUM_HOST] + r.at[SUM_DECODE] + r.at[SUM_EXTRA] != r.at[DEVICE_FREE]:
            raise Violation(TIME_ACCOUNTED, step, None, "host, decode and prefill time do not add up to the clock")

    def _check_motion(self, r: Replica, entries: Records, step: int) -> None:
        """Somebody gets on, and nobody is passed over without end."""
        idle = len(entries) == 0 and r.at[IN_FLIGHT] == 0 and r.at[UNFINISHED] > 0
        self._empty_turns = self._empty_turns + 1 if idle else 0
        status = r.progress["status"]
        waits = (status == WAITING) | (status == RUNNING) | (status == PREEMPTED)
        if self._empty_turns > MOST_EMPTY_TURNS:
            first = int(waits.argmax())
            raise Violation(PROGRESS_MADE, step, first, f"{MOST_EMPTY_TURNS} turns in a row computed nothing")
        if self.most_overtaken is None:
            return
        for over in ((status == FINISHED) & (self._progress["status"] != FINISHED)).nonzero()[0].tolist():
            self._overtaken[:over] += 1
        self._overtaken[entries["request"]] = 0
        worst = int((self._overtaken * waits).argmax())
        if waits[worst] and self._overtaken[worst] > self.most_overtaken:
            raise Violation(
                STARVED, step, worst, f"{self._overtaken[worst]} requests that came later ended while it got no token"
            )


def _entries(r: Replica, row: int) -> Records:
    """The batch in ring row `row`."""
    found: Records = r.entries[row, : r.batches["length"][row]].view(np.recarray)
    return found


def check_end(r: Replica) -> None:
    """Check a replica that has nothing left to do: everyone ended with all tokens, everything was given back."""
    step = int(r.at[STEPS])
    status, known = r.progress["status"], r.progress["known"]
    gone = set(r.aborts["request"].tolist())
    for request in range(int(r.at[NEXT_ARRIVAL])):
        if status[request] != FINISHED and not (status[request] == ABORTED and request in gone):
            raise Violation(ENDS, step, request, f"did not end (status {status[request]})")
        asked = int(r.requests["prompt"][request]) + int(r.requests["output"][request])
        if status[request] == FINISHED and known[request] != min(asked, r.limits.max_model_len):
            raise Violation(ACCOUNTED, step, request, f"ended with {known[request]} tokens, asked for {asked}")
    _check_waterfalls(r, step)
    check_tables(r, step)
    check_blocks(r, step)
    blocks = len(r.pool.blocks) - 1
    if r.pool.counts[FREE_BLOCKS] != blocks or r.pool.blocks["references"].any():
        raise Violation(GIVEN_BACK, step, None, f"{r.pool.counts[FREE_BLOCKS]} of {blocks} blocks are free at the end")


def _check_waterfalls(r: Replica, step: int) -> None:
    """Each finished request's queue, prefill, decode, stall, recompute and host times add up to its latency."""
    ledger, arrival = r.ledger, r.requests["arrival_ns"]
    queue = ledger["scheduled"] - arrival
    parts = [queue, *(ledger[name] for name in ("prefill", "decode", "stalled", "preempted", "host"))]
    finished = r.progress["status"] == FINISHED
    wrong = finished & ((sum(parts) != ledger["finish"] - arrival) | (np.min(parts, axis=0) < 0))
    if wrong.any():
        request = int(wrong.argmax())
        shown = [int(part[request]) for part in parts]
        raise Violation(TIME_ACCOUNTED, step, request, f"its parts {shown} ns are not its latency, or one is negative")
