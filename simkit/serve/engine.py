"""One replica in paced time: the compiled loop runs turn by turn, each when its simulated moment has come.

The loop is the virtual clock's own. A turn plans a step, or ends one, at a known simulated time; here that time is
waited for before the next turn, and before the tokens of a step are handed out. So a client that sends the same
requests at the same moments sees the times that a simulation of them gives, and asynchronous scheduling works as it
does there.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from simkit.cluster.growth import enlarged
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.discipline import engine
from simkit.engine.loop import IDLE, MORE
from simkit.engine.replica import new_replica
from simkit.engine.state import (
    ABORT,
    FINISHED,
    FREE_BLOCKS,
    I64,
    NEVER,
    NOW,
    OLDEST,
    REQUEST,
    ROWS,
    RUNNING_COUNT,
    WAITING_COUNT,
    Records,
    Replica,
    records,
)
from simkit.engine.stepping import submit
from simkit.serve.answer import Answer
from simkit.serve.pacing import PacedClock

FIRST_ROOM = 1024  # requests, cancellations and content ids before the first doubling


class Observer(Protocol):
    """Who is told what happens, for metrics."""

    def step(self, tokens: int, late_s: float) -> None:
        """A step's tokens are handed out, `late_s` real seconds after their time."""

    def tokens(self, replica: Replica, answer: Answer, new: int, gap_ns: int) -> None:
        """A step's `new` tokens are due, `gap_ns` after those before, or after the arrival if they are the first."""

    def over(self, replica: Replica, answer: Answer, reason: str) -> None:
        """A request is over: "length", "stop" or "abort"."""


class PacedEngine:
    """The replica behind an endpoint. All times are simulated ns."""

    def __init__(self, spec: ReplicaSpec, clock: PacedClock, observer: Observer) -> None:
        self.limits = spec.limits
        self.clock = clock
        self._tables = spec.tables
        self._advance = engine(spec.deployment.engine.discipline).advance
        self._observer = observer
        self._wake = asyncio.Event()
        self._answers: dict[int, Answer] = {}
        self._contents = 0  # content ids in use
        self._aborts = 0
        self._stamp_ns = 0  # of the latest arrival or cancellation
        self._looked_ns = 0  # up to when the replica has seen what came
        self.replica = new_replica(
            spec.limits,
            records(FIRST_ROOM, REQUEST),
            np.zeros(FIRST_ROOM, dtype=np.int64),
            _never(FIRST_ROOM),
            spec.num_blocks,
        )
        self.replica.at[ROWS] = 0

    @property
    def running(self) -> int:
        """Requests admitted."""
        return int(self.replica.at[RUNNING_COUNT])

    @property
    def waiting(self) -> int:
        """Requests queued."""
        return int(self.replica.at[WAITING_COUNT])

    @property
    def kv_used(self) -> float:
        """The share, 0 to 1, of the KV blocks held by requests."""
        blocks = len(self.replica.pool.blocks) - 1
        return 1 - int(self.replica.pool.counts[FREE_BLOCKS]) / blocks

    def submit(
        self, prompt: int, output: int, max_tokens: int, contents: I64, bell: asyncio.Event, priority: int = 0
    ) -> Answer:
        """A request of `prompt` tokens arrives now; it will end after `output` tokens, having asked for `max_tokens`.

        `contents` names its leading blocks (`simkit.serve.tokens.content_ids`); it must fit the context.
        """
        self._make_room(len(contents))
        r = self.replica
        row = submit(r, self._stamp(), prompt, output, max_tokens, priority)
        end = self._contents + len(contents)
        r.content_ids[self._contents : end] = contents
        r.requests["first_content"][row] = self._contents
        r.requests["content_blocks"][row] = len(contents)
        self._contents = end
        answer = Answer(row, prompt, output, bell)
        answer.last_token_ns = self._stamp_ns
        self._answers[row] = answer
        self._wake.set()
        return answer

    def cancel(self, answer: Answer) -> None:
        """A client is gone: its request is dropped, its blocks are free, from the next turn on."""
        if self._answers.pop(answer.row, None) is None:
            return
        if self._aborts == len(self.replica.aborts):
            aborts = _never(2 * self._aborts)
            aborts[: self._aborts] = self.replica.aborts
            self.replica = self.replica._replace(aborts=aborts)
        self.replica.aborts[self._aborts] = (self._stamp(), answer.row)
        self._aborts += 1
        self._observer.over(self.replica, answer, "abort")

    async def run(self) -> None:
        """Serve for ever; run as a task. If it fails, every answer is marked as failed."""
        try:
            while True:
                await self._turn()
        finally:
            for answer in self._answers.values():
                answer.failed = True
                answer.bell.set()

    async def _turn(self) -> None:
        """Take the next turn if its time has come, or wait for that."""
        at = self.replica.at
        oldest = int(at[OLDEST])
        now_ns = self.clock.now_ns()
        state = self._advance(self.replica, self._tables, now_ns, 1)
        if state == IDLE:
            self._wake.clear()
            await self._wake.wait()
        elif state == MORE:
            self._looked_ns = now_ns
            if int(at[OLDEST]) != oldest:
                await self._hand_out(oldest)
        else:
            await self.clock.sleep_until(int(at[NOW]))

    async def _hand_out(self, row: int) -> None:
        """Wait until the step committed in ring row `row` has ended, and deliver its tokens."""
        replica = self.replica
        end_ns = int(replica.batches["end"][row])
        length = int(replica.batches["length"][row])
        batch: Sequence[int] = replica.entries["request"][row, :length].tolist()
        tokens = int(replica.entries["tokens"][row, :length].sum())
        await self.clock.sleep_until(end_ns)
        for request in batch:
            answer = self._answers.get(request)
            if answer is not None:
                self._deliver(answer, end_ns)
        if length:
            self._observer.step(tokens, self.clock.late_s(end_ns))

    def _deliver(self, answer: Answer, now_ns: int) -> None:
        replica = self.replica
        known = int(replica.progress["known"][answer.row]) - answer.prompt_tokens
        if known == answer.delivered:
            return
        answer.cached_tokens = int(replica.progress["hit"][answer.row])
        new, answer.delivered = known - answer.delivered, known
        self._observer.tokens(replica, answer, new, now_ns - answer.last_token_ns)
        answer.last_token_ns = now_ns
        if replica.progress["status"][answer.row] == FINISHED:
            del self._answers[answer.row]
            foreseen = replica.requests["output"][answer.row] == replica.requests["max_tokens"][answer.row]
            self._observer.over(replica, answer, "length" if foreseen else "stop")
        answer.bell.set()

    def _stamp(self) -> int:
        """When what comes now came: after all that the replica has seen, in whole microseconds as traces have it."""
        now_ns = max(self.clock.now_ns(), self._looked_ns + 1)
        self._stamp_ns = max(self._stamp_ns, -(-now_ns // 1000) * 1000)
        return self._stamp_ns

    def _make_room(self, contents: int) -> None:
        rows = int(self.replica.at[ROWS])
        if rows == len(self.replica.requests):
            self.replica = enlarged(self.replica, 2 * rows)
        wanted = self._contents + contents
        if wanted > len(self.replica.content_ids):
            longer = np.zeros(2 * wanted, dtype=np.int64)
            longer[: self._contents] = self.replica.content_ids[: self._contents]
            self.replica = self.replica._replace(content_ids=longer)


def _never(count: int) -> Records:
    """Cancellations that do not come."""
    aborts = records(count, ABORT)
    aborts["time_ns"] = NEVER
    return aborts
