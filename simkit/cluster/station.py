"""A replica on the fleet's clock: it is given jobs, runs in the compiled loop as far as needed, and says who is done.

It is no process that takes steps. Between two looks it sleeps until the earliest time at which one of its requests can
end (simkit.cluster.loops.lookahead); what arrives meanwhile is put in its arrays and waits there.
"""

import math
from collections.abc import Callable

import numpy as np
import simpy

from simkit.cluster.alarm import Alarm
from simkit.cluster.growth import enlarged, trimmed
from simkit.cluster.job import Job
from simkit.cluster.loops.bound import fleet_loops
from simkit.cluster.loops.until_end import COUNT, END, ENDED, MORE, NEXT, cached_blocks
from simkit.cluster.offers import Offered, least_step_ns
from simkit.cluster.stepwise import stepwise
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.discipline import DISCIPLINES, engine, minds_blocks
from simkit.engine.replica import new_replica
from simkit.engine.simulate import ITERATIONS_A_CALL
from simkit.engine.state import (
    ABORT,
    BUSY,
    FREE_BLOCKS,
    NEVER,
    NEXT_ARRIVAL,
    REQUEST,
    ROWS,
    RUNNING_COUNT,
    TENANT,
    WAITING_COUNT,
    Replica,
    records,
)
from simkit.models.steptables import scaled

FIRST_ROOM = 64  # requests, before the arrays grow


class Station:
    """One replica from its start to its end; times are ns on the fleet's clock."""

    _moves_blocks = False  # whether somebody beside its requests holds blocks of it

    def __init__(
        self,
        clock: simpy.Environment,
        life: int,
        spec: ReplicaSpec,
        offered: Offered,
        on_end: Callable[[Job], None],
        events: int,
        room: int = FIRST_ROOM,
    ) -> None:
        """A replica with an empty cache. `on_end` is told of every job at the moment at which its last token is out.

        `life` is its index among all the fleet ever had; `events` the length of its log of first events.
        """
        self.life = life
        self.spec = spec
        self.jobs: list[Job] = []  # all it was ever given, in order
        self.outstanding = 0  # jobs given and not answered, cancelled or lost
        self.outstanding_tokens = 0
        self._clock = clock
        self._offered = offered
        self._on_end = on_end
        self._by_row: list[Job] = []
        self._tables = spec.tables
        self._least_step_ns = least_step_ns(spec.tables)
        discipline = spec.deployment.engine.discipline
        self._run = fleet_loops(discipline).run_until_end if discipline in DISCIPLINES else stepwise(engine(discipline))
        empty = new_replica(
            offered.limits,
            records(room, REQUEST),
            offered.content_ids,
            records(0, ABORT),
            spec.num_blocks,
            events,
            named=self._moves_blocks or minds_blocks(discipline, offered.content_ids),
        )
        tenants = int(offered.requests["tenant"].max(initial=0)) + 1
        self._replica = empty._replace(tenants=records(tenants, TENANT))
        self._replica.at[ROWS] = 0
        self._aborts = 0
        self._ended = np.zeros(offered.limits.max_running, dtype=np.int32)
        self._out = np.zeros(3, dtype=np.int64)
        self._late: list[Job] = []  # answered by a step that has been run but is not over before `_late_ns`
        self._late_ns = 0
        self._alarm: Alarm | None = None
        self._stopped = False
        self._slowness: list[float] = []  # factors of the slow-downs under way

    @property
    def booked(self) -> int:
        """Jobs that it has, or that are on their way to it."""
        return self.outstanding

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything that it has."""
        return self.booked == 0

    def fits(self, job: Job) -> bool:
        """Whether a job is no longer than the context."""
        return job.prompt_tokens + job.output_tokens <= self._offered.limits.max_model_len

    def give(self, job: Job) -> None:
        """A job arrives; it must fit."""
        now = int(self._clock.now)
        row = len(self._by_row)
        if row == len(self._replica.requests):
            self._replica = enlarged(self._replica, 2 * row)
        requests = self._replica.requests
        asked = self._offered.requests[job.request]
        requests[row] = asked
        if asked["arrival_ns"] != now:
            requests["arrival_ns"][row] = now
            if asked["deadline_ns"] != NEVER:
                requests["deadline_ns"][row] += job.arrived_ns - int(asked["arrival_ns"])
        if job.prompt_tokens != asked["prompt"] or job.output_tokens != asked["output"]:
            requests["prompt"][row] = job.prompt_tokens
            requests["output"][row] = job.output_tokens
            # what an earlier attempt generated is now of the prompt, and counts towards what was asked for
            generated = job.prompt_tokens - int(asked["prompt"])
            requests["max_tokens"][row] = max(job.output_tokens, int(asked["max_tokens"]) - generated)
        self._replica.at[ROWS] = row + 1
        job.sent_ns, job.life, job.row = now, self.life, row
        self.jobs.append(job)
        self._by_row.append(job)
        self.outstanding += 1
        self.outstanding_tokens += job.weight_tokens
        per_step = 1 + self._offered.limits.speculative_tokens
        self._wake_by(now + -(-job.output_tokens // per_step) * self._least_step_ns)

    def turn_away(self, job: Job) -> None:
        """A job that does not fit was sent here; it is only noted."""
        job.sent_ns, job.life = int(self._clock.now), self.life
        self.jobs.append(job)

    def cancel(self, job: Job) -> None:
        """The client of a job has gone: it stops at the next turn, its blocks are free then."""
        self.look()
        self._count_out(job)
        if job in self._late:
            return
        if self._aborts == len(self._replica.aborts):
            longer = records(max(8, 2 * self._aborts), ABORT)
            longer["time_ns"] = NEVER
            longer[: self._aborts] = self._replica.aborts
            self._replica = self._replica._replace(aborts=longer)
        self._replica.aborts["request"][self._aborts] = job.row
        self._replica.aborts["time_ns"][self._aborts] = int(self._clock.now)
        self._aborts += 1

    def let_go(self, job: Job) -> None:
        """The client of a job cannot be told any more, and the replica does not know: it goes on with it."""
        self.look()
        self._count_out(job)

    def stop(self) -> list[Job]:
        """The replica dies at this moment; returns the jobs that were open."""
        self.look()
        if self._alarm is not None:
            self._alarm.put_off()
            self._alarm = None
        self._stopped = True
        lost = [job for job in self._by_row if job.open]
        self.outstanding = self.outstanding_tokens = 0
        return lost

    def slow_down(self, factor: float) -> None:
        """From its next step on, steps take `factor` times as long; several factors at a time multiply."""
        self._slowness.append(factor)
        self._retime()

    def speed_up(self, factor: float) -> None:
        """One `slow_down` by this factor is over."""
        self._slowness.remove(factor)
        self._retime()

    def _retime(self) -> None:
        self.look()
        self._tables = scaled(self.spec.tables, math.prod(self._slowness)) if self._slowness else self.spec.tables
        self._least_step_ns = least_step_ns(self._tables)
        self.look()

    def generated(self, job: Job) -> tuple[int, int]:
        """(tokens of a job delivered by now, when the first was; 0 if none was)."""
        self.look()
        now = int(self._clock.now)
        ledger, progress = self._replica.ledger, self._replica.progress
        first = int(ledger["first_token"][job.row])
        if first == 0 or first > now:
            return 0, 0
        tokens = int(progress["known"][job.row]) - job.prompt_tokens
        # the step that was run last may end after now
        return tokens - int(ledger["last_token"][job.row] > now), first

    def first_token_ns(self, job: Job) -> int:
        """When the first token of an answered job was out."""
        return int(self._replica.ledger["first_token"][job.row])

    def running_and_waiting(self) -> tuple[int, int]:
        """Requests in the batch and in the queue, as of the last turn begun before now."""
        self.look()
        at = self._replica.at
        return int(at[RUNNING_COUNT]), int(at[WAITING_COUNT] + at[ROWS] - at[NEXT_ARRIVAL])

    def kv_used(self) -> float:
        """Share of the KV blocks that requests hold."""
        self.look()
        blocks = len(self._replica.pool.blocks) - 1
        return 1.0 - int(self._replica.pool.counts[FREE_BLOCKS]) / blocks

    def busy_ns(self) -> int:
        """Time in which a step was under way, up to the end of the last one begun before now."""
        self.look()
        return int(self._replica.at[BUSY])

    def cached_tokens(self, request: int) -> int:
        """How many of a request's leading prompt tokens are in this replica's prefix cache now."""
        asked = self._offered.requests[request]
        size = self._offered.limits.block_size
        named = min(int(asked["content_blocks"]), (int(asked["prompt"]) - 1) // size)
        if named == 0:
            return 0
        self.look()
        row = self._preview(request)  # may put larger arrays in the replica's place
        return int(cached_blocks(self._replica, row, named)) * size

    def look(self) -> None:
        """Catch up: run every turn that begins before now. Whom that answers is told by an alarm, not from here."""
        if self._stopped:
            return
        if not self._late:
            self._run_on()
        if self._late:
            self._wake_at(self._late_ns)

    def _woken(self) -> None:
        """Tell of those who are answered by now, and sleep until the next may be."""
        self._alarm = None
        now = int(self._clock.now)
        while True:
            if not self._late:
                self._run_on()
            if not self._late:
                return
            if self._late_ns > now:
                self._wake_at(self._late_ns)
                return
            self._tell()

    def _run_on(self) -> None:
        """Run turns that begin before now, up to the first that answers somebody: `_late` then."""
        now = int(self._clock.now)
        state = ENDED
        while state in (MORE, ENDED) and not self._late:
            state = self._run(
                self._replica, self._tables, now, self._turns(), self._least_step_ns, self._ended, self._out
            )
            if state == ENDED:
                rows = self._ended[: self._out[COUNT]].tolist()
                self._late_ns = int(self._out[END])
                self._late = [job for job in (self._by_row[row] for row in rows) if job.open]
            self._ran()
        if not self._late and self.outstanding > 0 and self._out[NEXT] != NEVER:
            self._wake_at(max(int(self._out[NEXT]), now + 1))

    def _turns(self) -> int:
        """How many turns to run before `_ran` is told."""
        return ITERATIONS_A_CALL

    def _ran(self) -> None:
        """Turns were run; `_late` are whom the last of them answers."""

    def finish(self) -> Replica:
        """The replica's arrays, as far as its requests go; unless it was stopped it first ends what it is about."""
        state = MORE
        while not self._stopped and state in (MORE, ENDED):
            state = self._run(
                self._replica, self._tables, NEVER, ITERATIONS_A_CALL, self._least_step_ns, self._ended, self._out
            )
        return trimmed(self._replica, len(self._by_row))

    def _preview(self, request: int) -> int:
        """A row past the last that looks like a request; nothing has arrived there."""
        row = len(self._by_row)
        if row == len(self._replica.requests):
            self._replica = enlarged(self._replica, 2 * row)
        self._replica.requests[row] = self._offered.requests[request]
        return row

    def _tell(self) -> None:
        ended, self._late = [job for job in self._late if job.open], []
        for job in ended:
            self._count_out(job)
            self._ended_well(job)
        for job in ended:
            self._on_end(job)

    def _ended_well(self, job: Job) -> None:
        """A job is answered, which nobody has been told yet."""

    def _count_out(self, job: Job) -> None:
        job.open = False
        self.outstanding -= 1
        self.outstanding_tokens -= job.weight_tokens

    def _wake_by(self, at_ns: int) -> None:
        if self._alarm is None or self._alarm.at_ns > at_ns:
            self._wake_at(at_ns)

    def _wake_at(self, at_ns: int) -> None:
        if self._alarm is not None:
            if self._alarm.at_ns == at_ns:
                return
            self._alarm.put_off()
        self._alarm = Alarm(self._clock, at_ns, self._woken, before_others=True)
