"""Replicas whose KV goes out to others, or comes in from elsewhere, besides what their own requests compute."""

from collections.abc import Callable

import numpy as np
import simpy

from simkit.cluster.growth import enlarged
from simkit.cluster.job import Job
from simkit.cluster.loops.kept_blocks import count_absent, keep, land, let_go, make_room
from simkit.cluster.offers import Offered
from simkit.cluster.station import Station
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.state import I32, I64, PENDING, WAITING
from simkit.errors import InputError

LANDS_UNDER = "vllm-v1"  # `LandingStation.make_room` counts on its admission, so that nobody waits for ever


def check_lands(spec: ReplicaSpec, where: str) -> None:
    """Raise InputError, beginning with `where`, for a replica whose scheduler would not find KV that arrives."""
    if not spec.limits.prefix_caching:
        raise InputError(
            f"{where} has enable_prefix_caching: false; KV that arrives is found as a cached prefix is: set it to true"
        )
    discipline = spec.deployment.engine.discipline
    if discipline != LANDS_UNDER:
        raise InputError(f"{where} has discipline {discipline!r}; where KV arrives it must be {LANDS_UNDER}")


class KeepingStation(Station):
    """A replica that computes prompts for others: a job's KV stays until somebody has fetched it.

    It takes a job only if the blocks of all that it was given and has not parted with fit at once, so whatever is kept
    for however long, whoever is first in its queue can run.
    """

    def __init__(
        self,
        clock: simpy.Environment,
        life: int,
        spec: ReplicaSpec,
        offered: Offered,
        on_end: Callable[[Job], None],
        events: int,
    ) -> None:
        """As Station."""
        super().__init__(clock, life, spec, offered, on_end, events)
        self._size = offered.limits.block_size
        self._usable = spec.num_blocks - 1
        self._claims: dict[Job, int] = {}
        self._claimed = 0
        self._kept: dict[Job, I32] = {}

    @property
    def load_tokens(self) -> int:
        """Prompt tokens given and not computed."""
        return self.outstanding_tokens

    def fits(self, job: Job) -> bool:
        """Whether a job is no longer than the context, and the cache."""
        return super().fits(job) and self._blocks_of(job) <= self._usable

    @property
    def kept_blocks(self) -> int:
        """Blocks that are kept for others."""
        return sum(len(blocks) for blocks in self._kept.values())

    def takes(self, job: Job) -> bool:
        """Whether a job, which fits the context, can be given now."""
        return self._claimed + self._blocks_of(job) <= self._usable

    def give(self, job: Job) -> None:
        """A job of one token arrives; it must be taken."""
        self._claims[job] = self._blocks_of(job)
        self._claimed += self._claims[job]
        super().give(job)
        self._replica.requests["max_tokens"][job.row] = job.output_tokens

    def hits(self, job: Job) -> int:
        """Prompt tokens of an answered job that were in the cache."""
        return int(self._replica.progress["hit"][job.row])

    def part_with(self, job: Job) -> None:
        """The KV of an answered job is no longer wanted here."""
        self.look()
        let_go(self._replica, self._kept.pop(job))
        self._claimed -= self._claims.pop(job)

    def _ran(self) -> None:
        for job in self._late:
            self._kept[job] = np.zeros(-(-job.prompt_tokens // self._size), dtype=np.int32)
            keep(self._replica, job.row, self._kept[job])

    def _blocks_of(self, job: Job) -> int:
        return -(-(job.prompt_tokens + job.output_tokens) // self._size)


class LandingStation(Station):
    """A replica to which KV of a job's leading blocks comes over a link before the job itself does.

    `make_room` holds blocks for it; `give` lets the job arrive with it. From there on it is a cached prefix: the
    scheduler finds it as it finds any other, and once the job is admitted the blocks are its own.
    """

    def __init__(
        self,
        clock: simpy.Environment,
        life: int,
        spec: ReplicaSpec,
        offered: Offered,
        on_end: Callable[[Job], None],
        events: int,
    ) -> None:
        """As Station."""
        super().__init__(clock, life, spec, offered, on_end, events)
        self._size = offered.limits.block_size
        self._usable = spec.num_blocks - 1
        self._held: dict[Job, tuple[int, I32]] = {}  # of these blocks so many were in the cache
        self._landed: list[Job] = []  # given, and not admitted yet
        self._lacking: dict[Job, int] = {}  # blocks that a job that is not over may still need, beside those held
        self._holding = 0  # blocks in `_held`, shared ones counted each time
        self._coming_tokens = 0  # of jobs that there is room for and that have not come

    @property
    def load_tokens(self) -> int:
        """Tokens of the jobs that it has or that are on their way."""
        return self.outstanding_tokens + self._coming_tokens

    def fits(self, job: Job) -> bool:
        """Whether a job is no longer than the context, and the cache."""
        return super().fits(job) and self._blocks_of(job) <= self._usable

    @property
    def block_tokens(self) -> int:
        """Tokens of a KV block."""
        return self._size

    @property
    def held_blocks(self) -> int:
        """Blocks held for jobs that are not admitted yet."""
        return self._holding

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
            cached = int(make_room(self._replica, row, 1, blocks))
            if cached < 0:
                return None
            self._held[job] = (cached, blocks)
            self._holding += kv_blocks
        self._lacking[job] = whole - kv_blocks
        self._coming_tokens += job.weight_tokens
        return kv_blocks - cached

    def give(self, job: Job) -> None:
        """A job arrives, and its KV with it; there must be room."""
        super().give(job)
        self._coming_tokens -= job.weight_tokens
        if job in self._held:
            cached, blocks = self._held[job]
            land(self._replica, job.row, cached, blocks)
            self._landed.append(job)

    def given_up(self, contents: I64) -> list[int]:
        """Those of some content ids that are not in the device's cache now."""
        self.look()
        absent = np.empty(len(contents), dtype=np.int64)
        gone: list[int] = absent[: count_absent(self._replica, contents, absent)].tolist()
        return gone

    def contents_of(self, request: int) -> I64:
        """Ids of the content that is in full blocks once a request has ended."""
        asked = self._offered.requests[request]
        count = int(asked["content_blocks"]) // self._offered.limits.content_span
        first = int(asked["first_content"])
        return self._offered.content_ids[first : first + count]

    def _turns(self) -> int:
        return 1 if self._landed else super()._turns()

    def _ran(self) -> None:
        if not self._landed:
            return
        status = self._replica.progress["status"]
        admitted = [job for job in self._landed if status[job.row] not in (PENDING, WAITING)]
        for job in admitted:
            _, blocks = self._held.pop(job)
            let_go(self._replica, blocks)
            self._holding -= len(blocks)
            if job in self._lacking:
                self._lacking[job] += len(blocks)
        if admitted:
            self._landed = [job for job in self._landed if job in self._held]

    def _count_out(self, job: Job) -> None:
        super()._count_out(job)
        self._lacking.pop(job, None)

    def _blocks_of(self, job: Job) -> int:
        return -(-(job.prompt_tokens + job.output_tokens) // self._size)

    def _preview(self, request: int) -> int:
        """A row past the last that looks like a request; nothing has arrived there."""
        row = len(self._by_row)
        if row == len(self._replica.requests):
            self._replica = enlarged(self._replica, 2 * row)
        self._replica.requests[row] = self._offered.requests[request]
        return row
