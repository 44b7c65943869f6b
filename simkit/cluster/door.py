"""The fleet's front door: every request comes in here, is let in, routed, and followed until it is over."""

from collections.abc import Callable, Sequence

import numpy as np
import simpy

from simkit.cluster.admission import Admission, DoorQueue
from simkit.cluster.alarm import Alarm
from simkit.cluster.client import Clients
from simkit.cluster.job import Job
from simkit.cluster.resend import LostJobs
from simkit.cluster.roster import Life, Roster, State
from simkit.cluster.way import Way
from simkit.engine.claims import deadlines_ns
from simkit.engine.state import NEVER
from simkit.metrics.result import Status
from simkit.workloads.workload import Workload

REASONS = {Status.REJECTED: "rejected", Status.TIMED_OUT: "timed_out", Status.FAILED: "failed"}


class Door:
    """Requests by row of the workload; times in ns on the fleet's clock.

    A request has attempts, each a Job: the first, and those of a client that tries again or of a gateway that sends a
    lost request on. It is over when an attempt is answered, or when the last has failed and nobody tries again.
    """

    def __init__(
        self,
        clock: simpy.Environment,
        workload: Workload,
        roster: Roster,
        way: Way,
        expected_tokens: list[int],
        admission: Admission,
        clients: Clients,
        lost_jobs: LostJobs,
        rng: np.random.Generator,
    ) -> None:
        """`rng` feeds back-off and users who break off."""
        n = len(workload)
        self.arrived_ns: list[int] = [-1] * n
        self.status: list[Status] = [Status.UNFINISHED] * n
        self.over_ns: list[int] = [0] * n
        self.attempts: list[int] = [0] * n  # jobs, those of the gateway included
        self.retries: list[int] = [0] * n  # by clients
        self.last: list[Job | None] = [None] * n
        self.first_token_ns: list[int] = [0] * n  # of an earlier attempt that was taken up again; 0: none
        self.generated: list[int] = [0] * n  # tokens that earlier attempts delivered and the last one goes on from
        self.arrivals = 0  # so far
        self.over = 0  # requests that are over, or will never be asked
        self.on_over: list[Callable[[int], None]] = []
        self.queue = DoorQueue(admission.order == "priority")
        self._clock = clock
        self._workload = workload
        self._roster = roster
        self._way = way
        self._expected = expected_tokens
        self._admission = admission
        self._clients = clients
        self._lost_jobs = lost_jobs
        self._rng = rng
        self._prompt = workload.prompt_tokens.tolist()
        self._output = workload.output_tokens.tolist()
        self._priority = [0] * n if workload.priority is None else workload.priority.tolist()
        self._breaks_off = clients.cancel_times_ns(rng, n)
        self._deadline = deadlines_ns(workload, np.arange(n)).tolist() if admission.drop_late else []
        way.attend(self.answered, self.serve_queue)
        roster.on_change.append(self.serve_queue)

    @property
    def done(self) -> bool:
        """Whether every request of the workload is over."""
        return self.over == len(self.status)

    def arrive(self, request: int) -> None:
        """A client asks for the first time."""
        self.arrived_ns[request] = int(self._clock.now)
        self.arrivals += 1
        breaks_off = self._breaks_off[request]
        if breaks_off is not None:
            Alarm(self._clock, int(self._clock.now) + breaks_off, lambda: self._break_off(request))
        self._ask(request)

    def skip(self, request: int) -> None:
        """A request will never be asked: what it follows from was not answered."""
        self.over += 1

    def answered(self, job: Job) -> None:
        """A replica has put out a job's last token."""
        self._end(job.request, Status.FINISHED)
        self._way.answered(job)
        life = self._roster.lives[job.life]
        if life.state is State.DRAINING:
            self._roster.check_drained(life)
        if len(self.queue):
            self.serve_queue()

    def dropped(self, life: Life, jobs: list[Job]) -> list[Job]:
        """A replica that had `jobs` is gone, or cannot be reached: all that are lost with it, for `lost`."""
        return self._way.dropped(life, jobs)

    def unlinked(self, life: Life) -> list[Job]:
        """No KV comes to a replica or from it: the jobs that are lost with what was on the links, for `lost`."""
        return self._way.unlinked(life)

    def stirred(self) -> None:
        """Something that jobs may have waited for has come about."""
        self._way.serve()

    def waiting(self, pool: str) -> int:
        """Requests that wait for a replica of a pool to take them."""
        return self._way.waiting(pool, len(self.queue))

    def lost(self, jobs: list[Job]) -> None:
        """Jobs that nobody works on any more, or that their clients have lost."""
        for job in jobs:
            job.open = False
            tokens, first_ns = self._generated(job)
            request = job.request
            resent = self.attempts[request] - 1 - self.retries[request]
            if self._lost_jobs.policy == "fail" or resent >= self._lost_jobs.most:
                self._failed(request, Status.FAILED)
                continue
            if self._lost_jobs.policy == "resume" and tokens > 0:
                self.first_token_ns[request] = self.first_token_ns[request] or first_ns
                self.generated[request] += tokens
            self._send_again(request)
        self._way.serve()

    def serve_queue(self) -> None:
        """Send those who wait at the door on, as far as replicas take them."""
        while (job := self.queue.first()) is not None:
            room = self._way.room(job)
            if room is None:
                return
            self.queue.pop()
            if self._deadline and self._clock.now > self._deadline_of(job.request):
                job.open = False
                self._way.withdraw(job)
                self._failed(job.request, Status.TIMED_OUT)
            else:
                self._send(job, room)

    def _ask(self, request: int) -> None:
        """One attempt of a client."""
        clients, now = self._clients, int(self._clock.now)
        if clients.timeout_s is not None:
            attempt = self.retries[request]
            Alarm(self._clock, now + round(clients.timeout_s * 1e9), lambda: self._timed_out(request, attempt, False))
        if clients.first_token_timeout_s is not None:
            attempt = self.retries[request]
            wait_ns = round(clients.first_token_timeout_s * 1e9)
            Alarm(self._clock, now + wait_ns, lambda: self._timed_out(request, attempt, True))
        self._send_again(request)

    def _send_again(self, request: int) -> None:
        """One job, from the first token or from where an earlier one stopped."""
        before = self.generated[request]
        job = Job(
            request,
            self.arrived_ns[request],
            self._prompt[request] + before,
            self._output[request] - before,
            self._expected[request],
        )
        self.attempts[request] += 1
        self.last[request] = job
        if job.output_tokens == 0:  # all was delivered before it was lost
            self._end(request, Status.FINISHED)
            return
        at_once = self._way.passes(job, len(self.queue)) or not len(self.queue)
        room = self._way.room(job) if at_once else None
        if room is not None:
            self._send(job, room)
        else:
            self._wait(job)

    def _send(self, job: Job, room: Sequence[Life]) -> None:
        job.inside = True
        if not self._way.send(job, room):
            job.open = False
            self._end(job.request, Status.REJECTED)

    def _wait(self, job: Job) -> None:
        """Join the queue at the door, or be turned away from it."""
        limit = self._admission.queue_limit
        priority = self._priority[job.request]
        if limit is None or len(self.queue) < limit:
            self.queue.push(job, priority)
            if self._roster.serving:
                self.serve_queue()
            return
        worst = self.queue.least_urgent() if self._admission.shed else None
        if worst is not None and worst[0] > priority:
            self.queue.left(worst[1])
            self.queue.push(job, priority)
            job = worst[1]
        job.open = False
        self._failed(job.request, Status.REJECTED)

    def _deadline_of(self, request: int) -> int:
        due: int = self._deadline[request]
        # a deadline is so long after the arrival, whenever that is
        return due if due == NEVER else due + self.arrived_ns[request] - int(self._workload.arrival_us[request]) * 1000

    def _timed_out(self, request: int, attempt: int, waits_for_first: bool) -> None:
        """The patience of one attempt is over."""
        if self.status[request] is not Status.UNFINISHED or self.retries[request] != attempt:
            return
        job = self.last[request]
        if job is None or not job.open:
            return
        if waits_for_first and (self.generated[request] > 0 or self._has_begun(job)):
            return
        self._withdraw(job)
        self._failed(request, Status.TIMED_OUT)

    def _break_off(self, request: int) -> None:
        """A user goes away, and does not come back."""
        if self.status[request] is not Status.UNFINISHED:
            return
        job = self.last[request]
        if job is not None and job.open:
            self._withdraw(job)
        self._end(request, Status.TIMED_OUT)

    def _has_begun(self, job: Job) -> bool:
        return self._generated(job)[0] > 0

    def _generated(self, job: Job) -> tuple[int, int]:
        """(tokens of a job that are out, when the first was; 0 if none is)."""
        station = self._roster.lives[job.life].station if job.row >= 0 else None
        return (0, 0) if station is None else station.generated(job)

    def _withdraw(self, job: Job) -> None:
        """Take a job back from where it is: the door, or a replica."""
        if not job.inside:
            self.queue.left(job)
            return
        self._way.withdraw(job)
        job.open = False
        if len(self.queue):
            self.serve_queue()

    def _failed(self, request: int, reason: Status) -> None:
        """An attempt has come to nothing: the client tries again, or it is over."""
        retries = self._clients.retries
        if self.retries[request] < retries.most and REASONS[reason] in retries.on:
            pause_ns = retries.pause_ns(self.retries[request], float(self._rng.random()))
            self.generated[request] = 0
            self.first_token_ns[request] = 0
            Alarm(self._clock, int(self._clock.now) + pause_ns, lambda: self._ask_again(request))
            return
        self._end(request, reason)

    def _ask_again(self, request: int) -> None:
        if self.status[request] is Status.UNFINISHED:
            self.retries[request] += 1
            self._ask(request)

    def _end(self, request: int, status: Status) -> None:
        self.status[request] = status
        self.over_ns[request] = int(self._clock.now)
        self.over += 1
        for action in self.on_over:
            action(request)
