"""A replica whose KV goes out to others, or comes in from elsewhere, besides what its own requests compute."""

from collections.abc import Callable

import numpy as np
import simpy

from simkit.cluster.alarm import Alarm
from simkit.cluster.job import Job
from simkit.cluster.loops.kept_blocks import count_absent, keep, land, make_room
from simkit.cluster.loops.kept_blocks import let_go as release
from simkit.cluster.offers import Offered
from simkit.cluster.station import Station
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.state import ABORTED, FINISHED, I32, I64, NOW, PENDING, WAITING

NOT_ADMITTED, OVER = (PENDING, WAITING), (FINISHED, ABORTED)


class KvStation(Station):
    """Blocks are held for jobs that are to come, with KV of theirs, and for KV that somebody is to fetch.

    In: `make_room` holds blocks for a job whose leading KV comes over a link; `give` lets it arrive with that. From
    there on it is a cached prefix: the scheduler finds it as it finds any other, and once the job is admitted the
    blocks are its own.

    Out: a job that was claimed for is computed for others; its KV stays until `part_with`. Jobs are claimed for only
    if the blocks of all that was claimed for and not parted with fit at once, so whatever is kept for however long,
    whoever is first in the queue can run.

    A job that was cancelled, or whose client cannot be told, counts until the scheduler is done with it.
    """

    _moves_blocks = True

    def __init__(
        self,
        clock: simpy.Environment,
        life: int,
        spec: ReplicaSpec,
        offered: Offered,
        on_end: Callable[[Job], None],
        events: int,
        on_room: Callable[[], None],
    ) -> None:
        """As Station; `on_room` is told when blocks come free that no answer tells of."""
        super().__init__(clock, life, spec, offered, on_end, events)
        self._on_room = on_room
        self._size = offered.limits.block_size
        self._usable = spec.num_blocks - 1
        self._coming: set[Job] = set()
        self._coming_tokens = 0
        self._held: dict[Job, tuple[int, I32]] = {}  # of these blocks so many were in the cache
        self._holding = 0  # blocks in `_held`, shared ones counted each time
        self._landed: list[Job] = []  # given, and not admitted yet
        self._lacking: dict[Job, int] = {}  # blocks that a job that is not over may still need, beside those held
        self._claims: dict[Job, int] = {}
        self._claimed = 0
        self._kept: dict[Job, I32] = {}
        self._leaving: list[Job] = []  # nobody waits for them, and the scheduler still has them

    @property
    def block_tokens(self) -> int:
        """Tokens of a KV block."""
        return self._size

    @property
    def kept_blocks(self) -> int:
        """Blocks that are kept for others."""
        return sum(len(blocks) for blocks in self._kept.values())

    @property
    def promised_blocks(self) -> int:
        """Blocks that are held, kept, claimed or may still be needed: 0 once nobody is to come and all is fetched."""
        return self._holding + self.kept_blocks + self._claimed + sum(self._lacking.values())

    @property
    def load_tokens(self) -> int:
        """Tokens of the jobs that it has or that are on their way."""
        return self.outstanding_tokens + self._coming_tokens

    @property
    def booked(self) -> int:
        """As Station."""
        return self.outstanding + len(self._coming)

    @property
    def idle(self) -> bool:
        """As Station; what is kept for others is waited for."""
        return self.booked == 0 and not self._kept

    def fits(self, job: Job) -> bool:
        """Whether a job is no longer than the context, and the cache."""
        return super().fits(job) and self._blocks_of(job) <= self._usable

    def takes(self, job: Job) -> bool:
        """Whether a job, which fits, can be claimed for now."""
        return self._claimed + self._blocks_of(job) <= self._usable

    def claim(self, job: Job) -> None:
        """A job will come whose KV is for others."""
        self._claims[job] = self._blocks_of(job)
        self._claimed += self._claims[job]

    def expect(self, job: Job) -> None:
        """A job is on its way here."""
        if job not in self._coming:
            self._coming.add(job)
            self._coming_tokens += job.weight_tokens

    def make_room(self, job: Job, kv_blocks: int) -> int | None:
        """Hold the first `kv_blocks` blocks of a job; returns how many of them must come. None: there is no room now.

        Room means that they are free, and that, with all that is held, each of the replica's jobs could still run to
        its end if it ran alone: so nobody waits for ever, whatever comes late.
        """
        self.look()
        whole = self._blocks_of(job)
        most = max(self._lacking.values(), default=0)
        if self._holding + kv_blocks + max(most, whole - kv_blocks) > self._usable:
            return None
        blocks = np.zeros(kv_blocks, dtype=np.int32)
        cached = 0
        if kv_blocks > 0:
            row = self._preview(job.request)  # may put larger arrays in the replica's place
            cached = int(self._calls(make_room, self._replica, row, 1, blocks))
            if cached < 0:
                return None
            self._held[job] = (cached, blocks)
            self._holding += kv_blocks
        self._lacking[job] = whole - kv_blocks
        self.expect(job)
        return kv_blocks - cached

    def give(self, job: Job) -> None:
        """A job arrives, and its KV with it; there must be room, or a claim."""
        if job in self._held:
            self.look()  # turns that began before must not find what comes now
        super().give(job)
        self._no_longer_coming(job)
        if job in self._claims:
            self._replica.requests["max_tokens"][job.row] = job.output_tokens
        if job in self._held:
            cached, blocks = self._held[job]
            self._calls(land, self._replica, job.row, cached, blocks)
            self._landed.append(job)

    def part_with(self, job: Job) -> None:
        """The KV of an answered job is no longer wanted here."""
        self.look()
        self._calls(release, self._replica, self._kept.pop(job))
        self._forget(job)

    def abandon(self, job: Job) -> None:
        """Nobody wants a job that was to come, is here, or left its KV here; one that is over is none of it."""
        if self._stopped:
            return
        if job.row < 0:
            self._forgo(job)
        elif job.open:
            self.cancel(job)
        elif job in self._kept:
            self.part_with(job)

    def cancel(self, job: Job) -> None:
        """As Station; what is held for it is free when the scheduler has dropped it."""
        super().cancel(job)
        self._leave(job)

    def let_go(self, job: Job) -> None:
        """As Station."""
        super().let_go(job)
        self._leave(job)

    def given_up(self, contents: I64) -> list[int]:
        """Those of some content ids that are not in the device's cache now."""
        self.look()
        absent = np.empty(len(contents), dtype=np.int64)
        gone: list[int] = absent[: self._calls(count_absent, self._replica, contents, absent)].tolist()
        return gone

    def contents_of(self, job: Job) -> I64:
        """Ids of the content that is in full blocks once a job has ended."""
        asked = self._offered.requests[job.request]
        tokens = job.prompt_tokens + (0 if job in self._claims else job.output_tokens)
        full = min(int(asked["content_blocks"]), tokens // self._size)
        first = int(asked["first_content"])
        return self._offered.content_ids[first : first + full // self._offered.limits.content_span]

    def turns(self) -> int:
        """As Station; who has landed is looked at after each."""
        return 1 if self._landed else super().turns()

    def rests(self) -> None:
        """As Station."""
        if self._leaving:
            self._pace.wake_by(max(int(self._replica.at[NOW]), int(self._clock.now)) + 1)

    def ran(self) -> None:
        """As Station."""
        for job in self.late:
            if job in self._claims:
                self._kept[job] = np.zeros(-(-job.prompt_tokens // self._size), dtype=np.int32)
                self._calls(keep, self._replica, job.row, self._kept[job])
        if not self._landed and not self._leaving:
            return
        status = self._replica.progress["status"]
        if self._landed:
            for job in self._landed:
                if status[job.row] not in NOT_ADMITTED:
                    held = self._release_held(job)
                    if job in self._lacking:
                        self._lacking[job] += held
            self._landed = [job for job in self._landed if job in self._held]
        if self._leaving:
            self._see_off([job for job in self._leaving if status[job.row] in OVER])

    def _see_off(self, gone: list[Job]) -> None:
        """The scheduler is done with jobs that nobody waits for."""
        if not gone:
            return
        self._leaving = [job for job in self._leaving if job not in gone]
        for job in gone:
            self._forget(job)
        at_ns = max(int(self._replica.at[NOW]), int(self._clock.now))
        Alarm(self._clock, at_ns, lambda: None if self._stopped else self._on_room())

    def _ended_well(self, job: Job) -> None:
        self._lacking.pop(job, None)

    def _leave(self, job: Job) -> None:
        """A job was counted out before it was answered."""
        if job in self._kept:  # by a step that is not over yet
            self.part_with(job)
        elif self._replica.progress["status"][job.row] in OVER:
            self._forget(job)
        else:
            self._leaving.append(job)
            self._pace.wake_by(max(int(self._replica.at[NOW]), int(self._clock.now)) + 1)

    def _forget(self, job: Job) -> None:
        """Nothing is held, needed or claimed for a job."""
        self._lacking.pop(job, None)
        self._claimed -= self._claims.pop(job, 0)

    def _forgo(self, job: Job) -> None:
        """A job that was on its way does not come."""
        self.look()
        self._no_longer_coming(job)
        self._release_held(job)
        self._forget(job)

    def _release_held(self, job: Job) -> int:
        """Hold no blocks for a job any longer; returns how many there were."""
        if job not in self._held:
            return 0
        _, blocks = self._held.pop(job)
        self._calls(release, self._replica, blocks)
        self._holding -= len(blocks)
        return len(blocks)

    def _no_longer_coming(self, job: Job) -> None:
        if job in self._coming:
            self._coming.remove(job)
            self._coming_tokens -= job.weight_tokens

    def _blocks_of(self, job: Job) -> int:
        return -(-(job.prompt_tokens + job.output_tokens) // self._size)
