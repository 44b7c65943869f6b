"""What moves KV between each replica's device and the tiers behind it.

What a tier holds is moved by bytes over links, so a hit there costs its transfer where a miss costs its prefill.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import simpy

from simkit.cluster.job import Job
from simkit.cluster.kv_station import KvStation
from simkit.cluster.link import Transfer
from simkit.cluster.roster import Life
from simkit.cluster.tiers import Tier, TierPart, TierTotals, totals
from simkit.engine.state import I64
from simkit.workloads.workload import Workload

Reads = Mapping[int, int]
"""Which of a request's contents, by index, come from which tier."""


class TierFlow:
    """The tiers of all lives of replicas; one that is not shared begins and ends with its replica's life."""

    def __init__(self, clock: simpy.Environment, workload: Workload, tiers: Sequence[Tier], token_bytes: int) -> None:
        """`token_bytes` of KV on all GPUs of a replica; the fastest tier comes first."""
        self._clock = clock
        self._prefixes = workload.prefixes
        self._content_tokens = 1 if workload.prefixes is None else workload.prefixes.block_tokens
        self._entry_bytes = self._content_tokens * token_bytes
        self._tiers = tiers
        self._shared = [TierPart(clock, tier, self._entry_bytes) if tier.shared else None for tier in tiers]
        self._parts: dict[int, list[TierPart]] = {}  # by life, by tier
        self._on_device: dict[int, set[int]] = {}  # by life, content that may be in the device's cache
        self._writes: dict[int, dict[Transfer, tuple[int, list[int]]]] = {}  # by life, tier and contents

    def begin(self, life: int) -> None:
        """The life of a replica begins."""
        self._parts[life] = [
            TierPart(self._clock, tier, self._entry_bytes) if shared is None else shared
            for tier, shared in zip(self._tiers, self._shared, strict=True)
        ]
        self._on_device[life] = set()
        self._writes[life] = {}

    def end(self, life: int) -> None:
        """It is over, and with it what was its own, or on its way from it."""
        for transfer in list(self._writes[life]):
            self._break_off(life, transfer)
        for part, shared in zip(self._parts[life], self._shared, strict=True):
            if shared is None:
                part.clear()

    def unlink(self, life: int) -> None:
        """Nothing gets from a replica to a store that others share."""
        for transfer, (level, _) in list(self._writes[life].items()):
            if self._tiers[level].shared:
                self._break_off(life, transfer)

    def reads(self, life: Life, station: KvStation, job: Job) -> Reads:
        """What of a prompt follows what the device has, without a gap."""
        contents = self._contents(job.request)
        most = min(len(contents), (job.prompt_tokens - 1) // self._content_tokens)
        first = station.cached_tokens(job.request) // self._content_tokens if most else 0
        parts = [(level, part) for level, part in enumerate(self._parts[life.index]) if self._reaches(life, level)]
        reads: dict[int, int] = {}
        for index in range(first, most):
            content = int(contents[index])
            level = next((level for level, part in parts if content in part), None)
            if level is None:
                break
            reads[index] = level
        return reads

    def blocks(self, reads: Reads, block_tokens: int) -> int:
        """KV blocks up to the end of what is read; what is cached counts too: the fetched part must follow it."""
        return (max(reads, default=-1) + 1) * self._content_tokens // block_tokens

    def any_shared(self, reads: Reads) -> bool:
        """Whether some of it comes from a store that others share."""
        return any(self._tiers[level].shared for level in set(reads.values()))

    def fetch(self, life: int, job: Job, reads: Reads, there: Callable[[], None]) -> list[Transfer]:
        """Read from each tier what it has, all at once; `there` is told of each tier's."""
        contents = self._contents(job.request)
        transfers = []
        for level, part in enumerate(self._parts[life]):
            found = [int(contents[i]) for i, where in reads.items() if where == level]
            if not found:
                continue
            for content in found:
                part.use(content)
            transfers.append(part.reads.transfer(len(found) * self._entry_bytes))
            transfers[-1].callbacks.append(partial(self._fetched, part, len(found) * self._content_tokens, there))
        return transfers

    def computed(self, life: Life, station: KvStation, job: Job) -> None:
        """After a job: its content to tiers that are written through, and to others what the device gave up."""
        contents = station.contents_of(job)
        through = [level for level, tier in enumerate(self._tiers) if tier.write == "through"]
        for level in through:
            self._write(life, level, contents.tolist())
        if 0 in through or not self._tiers:
            return
        on_device = self._on_device[life.index]
        on_device.update(contents.tolist())
        gone = station.given_up(np.fromiter(on_device, dtype=np.int64, count=len(on_device)))
        on_device.difference_update(gone)
        self._write(life, 0, gone)

    def totals(self) -> tuple[TierTotals, ...]:
        """Each tier's."""
        found = []
        for level, tier in enumerate(self._tiers):
            shared = self._shared[level]
            parts = [shared] if shared is not None else [parts[level] for parts in self._parts.values()]
            found.append(totals(tier, parts, self._entry_bytes))
        return tuple(found)

    def _contents(self, request: int) -> I64:
        if self._prefixes is None:
            return np.zeros(0, dtype=np.int64)
        return self._prefixes.ids[self._prefixes.start[request] : self._prefixes.start[request + 1]]

    def _reaches(self, life: Life, level: int) -> bool:
        return life.unlinked == 0 or not self._tiers[level].shared

    def _fetched(self, part: TierPart, tokens: int, there: Callable[[], None], _: simpy.Event) -> None:
        part.hit_tokens += tokens
        there()

    def _write(self, life: Life, level: int, contents: list[int]) -> None:
        """Move content to a tier of a replica; what has to go for it goes on to the next, if that is written so."""
        part = self._parts[life.index][level]
        new = [content for content in contents if part.wants(content)]
        if not new or not self._reaches(life, level):
            return
        part.expect(new)
        transfer = part.writes.transfer(len(new) * self._entry_bytes)
        self._writes[life.index][transfer] = (level, new)
        transfer.callbacks.append(lambda _: self._stored(life, transfer))

    def _stored(self, life: Life, transfer: Transfer) -> None:
        level, contents = self._writes[life.index].pop(transfer)
        gone = self._parts[life.index][level].store(contents)
        below = level + 1
        if gone and below < len(self._tiers) and self._tiers[below].write == "on_evict":
            self._write(life, below, gone)

    def _break_off(self, life: int, transfer: Transfer) -> None:
        transfer.give_up()
        level, contents = self._writes[life].pop(transfer)
        self._parts[life][level].expect_no_longer(contents)
