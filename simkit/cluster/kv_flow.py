"""Prefill here, decode there: each request's way from the gateway over a prefill replica and a link to its tokens."""

from collections import deque
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import simpy

from simkit.cluster.alarm import Alarm
from simkit.cluster.handover import Disaggregation, HandoverTotals
from simkit.cluster.job import Job
from simkit.cluster.kv_station import KeepingStation, LandingStation
from simkit.cluster.layerwise import Chunk
from simkit.cluster.topology import Wires
from simkit.cluster.trip import Trip
from simkit.metrics.result import Status
from simkit.workloads.workload import Workload

S = TypeVar("S", KeepingStation, LandingStation)


class KvFlow:
    """The gateway. Queues are first come, first served; of the replicas of a pool the one with least to do is asked."""

    def __init__(
        self,
        clock: simpy.Environment,
        workload: Workload,
        settings: Disaggregation,
        block_tokens: int,
        block_bytes: int,
        expected_tokens: list[int],
    ) -> None:
        """`block_bytes` are those of one KV block on all GPUs of a replica; `expected_tokens` [n] as in Door."""
        n = len(workload)
        self.status: list[Status] = [Status.UNFINISHED] * n
        self.over_ns = [0] * n
        self.trips: list[Trip | None] = [None] * n
        self.prefills: Sequence[KeepingStation] = ()
        self.decodes: Sequence[LandingStation] = ()
        self._clock = clock
        self._prompt, self._output = workload.prompt_tokens.tolist(), workload.output_tokens.tolist()
        self._shares_content = workload.prefixes is not None
        self._settings = settings
        self._block_tokens, self._block_bytes = block_tokens, block_bytes
        self._expected = expected_tokens
        self._wires = Wires(clock, settings.link, settings.shared_by)
        self._to_prefill: deque[Trip] = deque()
        self._to_decode: deque[Trip] = deque()  # for room there: KV that is ready, and requests prefilled there
        self._trip_of: dict[Job, Trip] = {}
        self._owed_bytes = 0
        self._most_kept = 0

    def arrive(self, request: int) -> None:
        """A client asks."""
        now = int(self._clock.now)
        prompt, output = self._prompt[request], self._output[request]
        trip = Trip(Job(request, now, prompt, output, self._expected[request]), None)
        self.trips[request] = trip
        first = Job(request, now, prompt, 1, prompt)
        if not (all(s.fits(first) for s in self.prefills) and all(s.fits(trip.decode) for s in self.decodes)):
            self.decodes[0].turn_away(trip.decode)
            trip.decode.open = False
            self._over(request, Status.REJECTED)
            return
        if self._is_local(request):
            self._to_decode.append(trip)
            self._serve_decode()
            return
        trip.prefill = first
        self._trip_of[first] = trip
        self._to_prefill.append(trip)
        self._serve_prefill()

    def prefilled(self, job: Job) -> None:
        """A prefill replica has computed a prompt."""
        trip = self._trip_of[job]
        trip.prefilled_ns = int(self._clock.now)
        self._most_kept = max(self._most_kept, max(station.kept_blocks for station in self.prefills))
        if trip.target is None:
            self._to_decode.append(trip)
            self._serve_decode()
        elif trip.pieces == 0 and trip.announced_blocks == trip.missing_blocks:
            self._arrived(trip)

    def computed(self, chunk: Chunk) -> None:
        """Layer-wise: a step of a prefill replica computes some of a prompt; it is under way."""
        trip = self._trip_of[chunk.job]
        known = trip.decode.kv_tokens // self._block_tokens
        skipped = known - trip.missing_blocks  # of the leading blocks, which the decode replica has
        ready = min(known, chunk.computed_tokens // self._block_tokens) - skipped - trip.announced_blocks
        if ready <= 0:
            return
        trip.announced_blocks += ready
        whole = ready * self._block_bytes
        last = whole // chunk.layers
        first_layer_ns = chunk.start_ns + (chunk.end_ns - chunk.start_ns) // chunk.layers
        trip.pieces += 2
        Alarm(self._clock, first_layer_ns, lambda: self._send(trip, whole - last))
        Alarm(self._clock, chunk.end_ns, lambda: self._send(trip, last))

    def answered(self, job: Job) -> None:
        """A decode replica has put out a job's last token."""
        self._over(job.request, Status.FINISHED)
        self._serve_decode()
        self._serve_prefill()

    def totals(self) -> HandoverTotals:
        """What was moved."""
        trips = [trip for trip in self.trips if trip is not None and trip.decode.row >= 0]
        return HandoverTotals(
            handed_over=sum(trip.prefill is not None for trip in trips),
            local=sum(trip.prefill is None for trip in trips),
            bytes_moved=self._wires.bytes,
            bytes_owed=self._owed_bytes,
            link_busy_ns=self._wires.busy_ns,
            links=self._wires.count,
            most_kept_blocks=self._most_kept,
        )

    def _is_local(self, request: int) -> bool:
        """Whether a decode replica is to compute the prompt."""
        settings = self._settings
        waiting = len(self._to_prefill)
        if settings.local_when_queued is not None and waiting > settings.local_when_queued:
            return True
        if self._prompt[request] - 1 < self._block_tokens:
            return True  # there is no full block to hand over
        if settings.local_below_tokens == 0:
            return False
        cached = max(station.cached_tokens(request) for station in self.decodes) if self._shares_content else 0
        return bool(self._prompt[request] - cached < settings.local_below_tokens)

    def _serve_prefill(self) -> None:
        """Give prefill replicas what they take, in order."""
        while self._to_prefill:
            trip = self._to_prefill[0]
            assert trip.prefill is not None, "others do not wait here"
            job = trip.prefill
            source = next((station for station in self._by_load(self.prefills, job) if station.takes(job)), None)
            if source is None:
                return
            if self._settings.layerwise and not self._find_room(trip):
                return
            self._to_prefill.popleft()
            trip.source = source
            source.give(job)

    def _serve_decode(self) -> None:
        """Let go to the decode replicas what there is room for, in order."""
        while self._to_decode:
            trip = self._to_decode[0]
            if not self._find_room(trip):
                return
            self._to_decode.popleft()
            trip.departs_ns = int(self._clock.now)
            if trip.prefill is None:
                self._arrived(trip)
            else:
                trip.announced_blocks = trip.missing_blocks
                trip.pieces = 1
                self._send(trip, trip.missing_blocks * self._block_bytes)

    def _find_room(self, trip: Trip) -> bool:
        """Hold blocks for a job at the decode replica with least to do that has room."""
        job = trip.decode
        blocks = (job.prompt_tokens - 1) // self._block_tokens if trip.prefill is not None else 0
        for station in self._by_load(self.decodes, job):
            missing = station.make_room(job, blocks)
            if missing is not None:
                job.kv_tokens = blocks * self._block_tokens
                trip.target, trip.missing_blocks = station, missing
                self._owed_bytes += missing * self._block_bytes
                return True
        return False

    def _by_load(self, stations: Sequence[S], job: Job) -> list[S]:
        """The least loaded first: tokens that it has not done, and what of this prompt it has not cached."""
        if len(stations) == 1:
            return list(stations)

        def load(station: S) -> int:
            cached = station.cached_tokens(job.request) if self._shares_content else 0
            return station.load_tokens - cached

        return sorted(stations, key=load)

    def _send(self, trip: Trip, size: int) -> None:
        """Put bytes on the link; the last to be there brings the job along."""
        assert trip.source is not None, "it was prefilled"
        assert trip.target is not None, "there is room"
        if size == 0:
            self._piece_there(trip)
            return
        there = self._wires.between(trip.source.life, trip.target.life).transfer(size)
        there.callbacks.append(lambda _: self._piece_there(trip))

    def _piece_there(self, trip: Trip) -> None:
        trip.pieces -= 1
        if trip.pieces == 0 and trip.announced_blocks == trip.missing_blocks and trip.prefilled_ns > 0:
            self._arrived(trip)

    def _arrived(self, trip: Trip) -> None:
        """A job is at its decode replica, with its KV if that came from elsewhere."""
        assert trip.target is not None, "there is room"
        trip.target.give(trip.decode)
        if trip.prefill is not None and trip.source is not None:
            trip.departs_ns = max(trip.departs_ns, trip.prefilled_ns)
            trip.source.part_with(trip.prefill)
            self._serve_prefill()

    def _over(self, request: int, status: Status) -> None:
        self.status[request] = status
        self.over_ns[request] = int(self._clock.now)


def expected_of(requests: np.recarray[tuple[int, ...], np.dtype[np.void]]) -> list[int]:
    """[n] tokens that routers may believe a request to have: its prompt and the answer that is predicted."""
    expected: list[int] = (requests["prompt"].astype(np.int64) + requests["predicted"]).tolist()
    return expected
