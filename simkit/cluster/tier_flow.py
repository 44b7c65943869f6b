"""Replicas with KV tiers behind them: a request's prefix is fetched from the fastest tier that has it, then it is sent.

What a tier holds is moved by bytes over links, so a hit there costs its transfer where a miss costs its prefill.
"""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import simpy

from simkit.cluster.job import Job
from simkit.cluster.kv_station import LandingStation
from simkit.cluster.roster import Life
from simkit.cluster.routers import Router
from simkit.cluster.tiers import Tier, TierPart, TierTotals, totals
from simkit.cluster.trip import Trip
from simkit.cluster.view import FleetView
from simkit.metrics.result import Status
from simkit.workloads.workload import Workload


class TierFlow:
    """The gateway, and what moves KV between each replica's device and its tiers."""

    def __init__(
        self,
        clock: simpy.Environment,
        workload: Workload,
        tiers: Sequence[Tier],
        router: Router,
        token_bytes: int,
        expected_tokens: list[int],
    ) -> None:
        """`token_bytes` of KV on all GPUs of a replica; the fastest tier comes first."""
        n = len(workload)
        self.status: list[Status] = [Status.UNFINISHED] * n
        self.over_ns = [0] * n
        self.trips: list[Trip | None] = [None] * n
        self._clock = clock
        self._router = router
        self._view = FleetView(clock, workload, expected_tokens)
        self._expected = expected_tokens
        self._prompt, self._output = workload.prompt_tokens.tolist(), workload.output_tokens.tolist()
        self._content_tokens = 1 if workload.prefixes is None else workload.prefixes.block_tokens
        self._entry_bytes = self._content_tokens * token_bytes
        self._tiers = tiers
        self._shared = [TierPart(clock, tier, self._entry_bytes) if tier.shared else None for tier in tiers]
        self._parts: list[list[TierPart]] = []  # by replica, by tier
        self._lives: list[Life] = []
        self._stations: list[LandingStation] = []
        self._waiting: list[deque[Trip]] = []  # by replica, for blocks
        self._on_device: list[set[int]] = []  # by replica, content that may be in the device's cache

    def add(self, life: Life, station: LandingStation) -> None:
        """A replica, before time begins."""
        self._lives.append(life)
        self._stations.append(station)
        self._parts.append(
            [
                TierPart(self._clock, tier, self._entry_bytes) if shared is None else shared
                for tier, shared in zip(self._tiers, self._shared, strict=True)
            ]
        )
        self._waiting.append(deque())
        self._on_device.append(set())

    def arrive(self, request: int) -> None:
        """A client asks."""
        now = int(self._clock.now)
        trip = Trip(Job(request, now, self._prompt[request], self._output[request], self._expected[request]), None)
        self.trips[request] = trip
        station = self._stations[self._router.choose(request, self._view.over(self._lives))]
        trip.target = station
        if not station.fits(trip.decode):
            station.turn_away(trip.decode)
            trip.decode.open = False
            self._over(request, Status.REJECTED)
            return
        self._waiting[station.life].append(trip)
        self._serve(station)

    def answered(self, job: Job) -> None:
        """A replica has put out a job's last token."""
        self._over(job.request, Status.FINISHED)
        station = self._stations[job.life]
        self._write_what_is_due(station, job)
        self._serve(station)

    def totals(self) -> tuple[TierTotals, ...]:
        """Each tier's."""
        found = []
        for level, tier in enumerate(self._tiers):
            shared = self._shared[level]
            parts = [shared] if shared is not None else [replica[level] for replica in self._parts]
            found.append(totals(tier, parts, self._entry_bytes))
        return tuple(found)

    def _serve(self, station: LandingStation) -> None:
        """Let those who wait for blocks of a replica begin, in order."""
        waiting = self._waiting[station.life]
        while waiting:
            trip = waiting[0]
            reads = self._reads(station, trip.decode)
            # what is cached counts too: the fetched part must follow it without a gap
            end = max(reads, default=-1) + 1
            blocks = end * self._content_tokens // station.block_tokens
            missing = station.make_room(trip.decode, blocks)
            if missing is None:
                return
            waiting.popleft()
            trip.departs_ns = int(self._clock.now)
            trip.decode.kv_tokens = missing * station.block_tokens
            self._fetch(station, trip, reads)

    def _reads(self, station: LandingStation, job: Job) -> dict[int, int]:
        """What of a prompt follows what the device has, without a gap: {index of the content: tier}."""
        contents = self._view.content(job.request)
        most = min(len(contents), (job.prompt_tokens - 1) // self._content_tokens)
        first = station.cached_tokens(job.request) // self._content_tokens if most else 0
        reads: dict[int, int] = {}
        for index in range(first, most):
            content = int(contents[index])
            level = next((i for i, part in enumerate(self._parts[station.life]) if content in part), None)
            if level is None:
                break
            reads[index] = level
        return reads

    def _fetch(self, station: LandingStation, trip: Trip, reads: dict[int, int]) -> None:
        """Read from each tier what it has; the job arrives with the last of it."""
        contents = self._view.content(trip.decode.request)
        parts = self._parts[station.life]
        by_level = {
            level: [int(contents[i]) for i, where in reads.items() if where == level] for level in range(len(parts))
        }
        trip.pieces = sum(bool(found) for found in by_level.values())
        if trip.pieces == 0:
            station.give(trip.decode)
            return
        for level, found in by_level.items():
            if not found:
                continue
            part = parts[level]
            part.hit_tokens += len(found) * self._content_tokens
            for content in found:
                part.use(content)
            there = part.reads.transfer(len(found) * self._entry_bytes)
            there.callbacks.append(self._fetched(station, trip))

    def _fetched(self, station: LandingStation, trip: Trip) -> Callable[[simpy.Event], None]:
        def come(_: simpy.Event) -> None:
            trip.pieces -= 1
            if trip.pieces == 0:
                station.give(trip.decode)

        return come

    def _write_what_is_due(self, station: LandingStation, job: Job) -> None:
        """After a request: its content to tiers that are written through, and to others what the device gave up."""
        life = station.life
        contents = station.contents_of(job.request)
        through = [i for i, tier in enumerate(self._tiers) if tier.write == "through"]
        for level in through:
            self._write(life, level, contents.tolist())
        if 0 in through or not self._tiers:
            return
        on_device = self._on_device[life]
        on_device.update(contents.tolist())
        gone = station.given_up(np.fromiter(on_device, dtype=np.int64, count=len(on_device)))
        on_device.difference_update(gone)
        self._write(life, 0, gone)

    def _write(self, life: int, level: int, contents: list[int]) -> None:
        """Move content to a tier of a replica; what has to go for it goes on to the next, if that is written so."""
        part = self._parts[life][level]
        new = [content for content in contents if part.wants(content)]
        if not new:
            return
        part.expect(new)

        def stored(_: simpy.Event) -> None:
            gone = part.store(new)
            below = level + 1
            if gone and below < len(self._tiers) and self._tiers[below].write == "on_evict":
                self._write(life, below, gone)

        part.writes.transfer(len(new) * self._entry_bytes).callbacks.append(stored)

    def _over(self, request: int, status: Status) -> None:
        self.status[request] = status
        self.over_ns[request] = int(self._clock.now)
