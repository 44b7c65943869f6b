"""Who is let in: how much a replica is sent at a time, how many wait at the door, who of them goes first or is shed."""

import heapq
import itertools
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from simkit.cluster.job import Job


class Admission(BaseModel):
    """Limits at the door; by default there are none and nobody waits there while a replica is up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replica_limit: int | None = Field(default=None, ge=1, description="requests that a replica has at a time, at most")
    queue_limit: int | None = Field(default=None, ge=0, description="requests that wait at the door; more: 429")
    order: Literal["fcfs", "priority"] = Field(default="fcfs", description="who of them goes first")
    shed: bool = Field(default=False, description="a full queue turns its least urgent away for a more urgent one")
    drop_late: bool = Field(default=False, description="who waits past the deadline is dropped when it is its turn")


class DoorQueue:
    """Jobs that wait at the door; those that were closed meanwhile are passed over when they are met."""

    def __init__(self, by_priority: bool) -> None:
        self._by_priority = by_priority
        self._heap: list[tuple[int, int, Job]] = []
        self._numbers = itertools.count()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, job: Job, priority: int) -> None:
        """A job at the end, or before those of a larger number."""
        heapq.heappush(self._heap, (priority if self._by_priority else 0, next(self._numbers), job))
        self._length += 1

    def first(self) -> Job | None:
        """Who is next of those that are still open; None if there is none."""
        while self._heap:
            if self._heap[0][2].open:
                return self._heap[0][2]
            heapq.heappop(self._heap)
        return None

    def pop(self) -> None:
        """The first goes on."""
        heapq.heappop(self._heap)
        self._length -= 1

    def left(self, job: Job) -> None:
        """A job that waits here was closed."""
        job.open = False
        self._length -= 1

    def least_urgent(self) -> tuple[int, Job] | None:
        """The largest number, of several the latest to come; None if nobody waits."""
        waiting = [entry for entry in self._heap if entry[2].open]
        if not waiting:
            return None
        priority, _, job = max(waiting, key=lambda entry: entry[:2])
        return priority, job
