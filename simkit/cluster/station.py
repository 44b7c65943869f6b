"""A replica on the fleet's clock: it is given jobs, runs as far as needed, and says who is done and when."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import simpy

from simkit.cluster.growth import enlarged, trimmed, with_more_aborts
from simkit.cluster.job import Job
from simkit.cluster.loops.bound import fleet_loops
from simkit.cluster.loops.until_end import COUNT, END, ENDED, NEXT, cached_blocks
from simkit.cluster.offers import Offered, least_step_ns
from simkit.cluster.pace import Pace, Ran
from simkit.cluster.stepwise import stepwise
from simkit.compiled import Calls
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


class Together(Protocol):
    """Engines that take their steps together, one of which a station is: their arrays are rows of common ones."""

    def enlarge(self) -> None:
        """Room for twice as many requests."""

    def lengthen_aborts(self) -> None:
        """Room for more cancellations."""

    def slow_down(self, place: int, factor: float) -> None:
        """The steps of the engine in a place take `factor` times as long as its tables say."""

    def least_step_ns(self, place: int) -> int:
        """The shortest step in which the engine in a place computes a token."""


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
        self.late: list[Job] = []  # as simkit.cluster.pace.Engine
        self.on_end = on_end
        self._clock = clock
        self._offered = offered
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
        self._calls = Calls()
        self._replica = empty._replace(tenants=records(tenants, TENANT))
        self._replica.at[ROWS] = 0
        self._aborts = 0
        self._ended = np.zeros(offered.limits.max_running, dtype=np.int32)
        self._out = np.zeros(3, dtype=np.int64)
        self._pace = Pace(clock, (self,), self._run_alone)
        self._together: Together | None = None
        self._place = 0  # in that
        self._stopped = False
        self._slowness: list[float] = []  # factors of the slow-downs under way

    def join(self, together: Together, place: int, pace: Pace) -> Replica:
        """Run with others from here on, which it does not yet; returns its arrays, for `see` to be told of others."""
        self._together, self._place, self._pace = together, place, pace
        self._least_step_ns = together.least_step_ns(place)
        return self._replica

    def see(self, replica: Replica) -> None:
        """Its arrays, from here on; others may run them."""
        self._replica = replica
        self._calls.forget()

    @property
    def clock(self) -> simpy.Environment:
        """The fleet's clock."""
        return self._clock

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
        row = self._next_row()
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
        self._pace.wake_by(now + -(-job.output_tokens // per_step) * self._least_step_ns)

    def turn_away(self, job: Job) -> None:
        """A job that does not fit was sent here; it is only noted."""
        job.sent_ns, job.life = int(self._clock.now), self.life
        self.jobs.append(job)

    def cancel(self, job: Job) -> None:
        """The client of a job has gone: it stops at the next turn, its blocks are free then."""
        self.look()
        self._count_out(job)
        if job in self.late:
            return
        if self._aborts == len(self._replica.aborts):
            if self._together is None:
                self.see(with_more_aborts(self._replica))
            else:
                self._together.lengthen_aborts()
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
        self._pace.stop()
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
        if self._together is not None:
            self._together.slow_down(self._place, math.prod(self._slowness))
            self._least_step_ns = self._together.least_step_ns(self._place)
        else:
            self._tables = scaled(self.spec.tables, math.prod(self._slowness)) if self._slowness else self.spec.tables
            self._calls.forget()
            self._least_step_ns = least_step_ns(self._tables)
        self._pace.changed()
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
        return tokens - int(progress["last_token"][job.row] > now), first

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
        return int(self._calls(cached_blocks, self._replica, row, named)) * size

    def look(self) -> None:
        """Catch up: run every turn that begins before now. Whom that answers is told by an alarm, not from here."""
        self._pace.look()

    def turns(self) -> int:
        """As simkit.cluster.pace.Engine."""
        return ITERATIONS_A_CALL

    def ran(self) -> None:
        """As simkit.cluster.pace.Engine."""

    def rests(self) -> None:
        """As simkit.cluster.pace.Engine."""

    def note_late(self, rows: list[int]) -> None:
        """The jobs in these rows are answered by the step that was run last."""
        self.late = [job for job in (self._by_row[row] for row in rows) if job.open]

    def count_out_late(self) -> list[Job]:
        """As simkit.cluster.pace.Engine."""
        ended, self.late = [job for job in self.late if job.open], []
        for job in ended:
            self._count_out(job)
            self._ended_well(job)
        return ended

    def finish(self) -> Replica:
        """The replica's arrays, as far as its requests go; unless it was stopped it first ends what it is about."""
        self._pace.finish()
        return trimmed(self._replica, len(self._by_row))

    def _run_alone(self, until_ns: int, turns: int) -> Ran:
        """As simkit.cluster.pace.Pace has it."""
        out = self._out
        state = self._calls(
            self._run, self._replica, self._tables, until_ns, turns, self._least_step_ns, self._ended, out
        )
        if state == ENDED:
            self.note_late(self._ended[: out[COUNT]].tolist())
        return Ran(state, int(out[END]), int(out[NEXT]))

    def _preview(self, request: int) -> int:
        """A row past the last that looks like a request; nothing has arrived there."""
        row = self._next_row()
        self._replica.requests[row] = self._offered.requests[request]
        return row

    def _next_row(self) -> int:
        """The row after the last; there is room for it, for which larger arrays may have come in place of others."""
        row = len(self._by_row)
        if row == len(self._replica.requests):
            if self._together is None:
                self.see(enlarged(self._replica, 2 * row))
            else:
                self._together.enlarge()
        return row

    def _ended_well(self, job: Job) -> None:
        """A job is answered, which nobody has been told yet."""

    def _count_out(self, job: Job) -> None:
        job.open = False
        self.outstanding -= 1
        self.outstanding_tokens -= job.weight_tokens
