"""KV behind the device caches: host memory, disks, a store that replicas share; settings, contents and totals."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import simpy
from pydantic import BaseModel, ConfigDict, Field

from simkit.cluster.link import Link
from simkit.cluster.topology import LinkSpec

GIB = 1 << 30


class Tier(BaseModel):
    """One level of the hierarchy. It holds content that the workload names, least recently used first to go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "host"
    capacity_gib: float = Field(gt=0, le=1e9, description="of each replica; of all together where shared")
    link: LinkSpec = Field(description="to read it; writes have a link of the same kind to themselves")
    shared: bool = Field(default=False, description="one for all replicas, behind one link")
    write: Literal["through", "on_evict"] = Field(
        default="through", description="when a request ends; or when the level above gives content up"
    )


@dataclass(frozen=True)
class TierTotals:
    """What a tier did, all its parts added up."""

    name: str
    hit_tokens: int  # prompt tokens that were fetched from it instead of computed
    read_bytes: int
    written_bytes: int  # what was there in the end; writes that were broken off are not in it
    evicted_bytes: int  # for want of room, or because the replica whose tier it was is gone
    held_bytes: int  # at the end
    read_busy_ns: int  # time in which its links were busy, added up over links
    write_busy_ns: int


class TierPart:
    """A tier as one replica sees it, or as all see it where it is shared; entries are content ids of the workload."""

    def __init__(self, clock: simpy.Environment, spec: Tier, entry_bytes: int) -> None:
        """`entry_bytes` are those of what one id covers, on all GPUs of a replica."""
        self.spec = spec
        self.hit_tokens = 0
        self.written = 0  # entries
        self.evicted = 0
        self.reads = Link(clock, spec.link.bytes_per_s(), spec.link.latency_ns())
        self.writes = Link(clock, spec.link.bytes_per_s(), spec.link.latency_ns())
        self._room = int(spec.capacity_gib * GIB) // entry_bytes
        self._entries: OrderedDict[int, None] = OrderedDict()
        self._coming: set[int] = set()  # being written

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, content: int) -> bool:
        return content in self._entries

    def wants(self, content: int) -> bool:
        """Whether writing it would add anything; what is there counts as used again."""
        if content in self._entries:
            self._entries.move_to_end(content)
            return False
        return self._room > 0 and content not in self._coming

    def expect(self, contents: list[int]) -> None:
        """These are on their way here."""
        self._coming.update(contents)

    def store(self, contents: list[int]) -> list[int]:
        """These have come; returns what had to go for them, the least recently used first."""
        self.written += len(contents)
        for content in contents:
            self._coming.discard(content)
            self._entries[content] = None
            self._entries.move_to_end(content)
        gone = [self._entries.popitem(last=False)[0] for _ in range(max(0, len(self._entries) - self._room))]
        self.evicted += len(gone)
        return gone

    def expect_no_longer(self, contents: list[int]) -> None:
        """These were on their way, and do not come."""
        self._coming.difference_update(contents)

    def clear(self) -> None:
        """All of it is gone."""
        self.evicted += len(self._entries)
        self._entries.clear()

    def use(self, content: int) -> None:
        """It was read."""
        self._entries.move_to_end(content)


def totals(spec: Tier, parts: list[TierPart], entry_bytes: int) -> TierTotals:
    """A tier's parts together."""
    return TierTotals(
        name=spec.name,
        hit_tokens=sum(part.hit_tokens for part in parts),
        read_bytes=sum(part.reads.bytes for part in parts),
        written_bytes=sum(part.written for part in parts) * entry_bytes,
        evicted_bytes=sum(part.evicted for part in parts) * entry_bytes,
        held_bytes=sum(len(part) for part in parts) * entry_bytes,
        read_busy_ns=sum(part.reads.busy_ns for part in parts),
        write_busy_ns=sum(part.writes.busy_ns for part in parts),
    )
