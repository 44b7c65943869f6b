"""The way of a request where KV is moved: prefill here, decode there, or out of tiers behind the replica.

A trip waits at the door for a prefill replica that takes it, in a replica's line for the blocks that KV from a tier
needs, or, prefilled, for blocks at a decode replica. Then its KV is on links; with the last of it the job is given.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import simpy

from simkit.cluster.handover import Disaggregation, HandoverTotals
from simkit.cluster.job import Job
from simkit.cluster.kv_links import KvLinks
from simkit.cluster.kv_station import KvStation
from simkit.cluster.layerwise import Chunk, ChunkedStation
from simkit.cluster.locality import Locality
from simkit.cluster.moving import Moving, token_bytes
from simkit.cluster.offers import Offers
from simkit.cluster.resend import LostJobs
from simkit.cluster.roster import Life, Member, Roster
from simkit.cluster.tier_flow import Reads, TierFlow
from simkit.cluster.tiers import TierTotals
from simkit.cluster.trip import Trip
from simkit.cluster.way import Choice, below_limit
from simkit.errors import InputError

NO_READS: Reads = {}


class KvFlow:
    """`simkit.cluster.way.Way` with KV on links. Lines are first come, first served.

    Where prefill and decode are apart, the replica with least to do is asked, of prefill replicas the one that the
    router chooses if there is a router.
    """

    def __init__(
        self,
        clock: simpy.Environment,
        roster: Roster,
        offers: Offers,
        events: int,
        choice: Choice | None,
        limit: int | None,
        moving: Moving,
        lost_jobs: LostJobs,
        members: Sequence[Member],
    ) -> None:
        """As Straight; `members` are all that there may be."""
        self._clock, self._roster, self._offers, self._events = clock, roster, offers, events
        self._choice, self._limit = choice, limit
        self._apart, self._lost_jobs = moving.apart, lost_jobs
        self._prefill_pools = () if moving.apart is None else moving.apart.prefill
        self._stations: dict[int, KvStation] = {}  # by life
        workload, spec = offers.workload, members[0].spec
        self._shares_content = workload.prefixes is not None
        self._block_tokens = spec.limits.block_size
        named = 0 if workload.prefixes is None else workload.prefixes.block_tokens
        if moving.tiers and named % self._block_tokens:
            raise InputError(
                f"deployment.engine.block_size={self._block_tokens}: with tiers it has to divide the {named} tokens of "
                "the blocks in which the workload names content; choose one that does"
            )
        self._tiers = TierFlow(clock, workload, moving.tiers, token_bytes(spec)) if moving.tiers else None
        self._locality = None if moving.apart is None else Locality(moving.apart, workload, members)
        settings = moving.apart or Disaggregation()  # where it is not apart, nothing is sent
        block_bytes = self._block_tokens * token_bytes(spec)
        self._links = KvLinks(clock, settings, self._block_tokens, block_bytes, self._arrived)
        self._trips: dict[Job, Trip] = {}  # by the job that puts out the tokens
        self._of_prefill: dict[Job, Trip] = {}
        self._underway: dict[Trip, None] = {}  # sent, and not given to the replica that answers
        self._to_decode: OrderedDict[Trip, None] = OrderedDict()  # KV that is ready, and who is prefilled there
        self._lines: dict[int, OrderedDict[Trip, None]] = {}  # by life: for blocks, to read a tier
        self._most_kept = self._taken_up = 0
        roster.on_change.append(self._serve_all)
        roster.on_gone.append(self._gone)

    def attend(self, on_answer: Callable[[Job], None], on_room: Callable[[], None]) -> None:
        """As Way."""
        self._on_answer, self._on_room = on_answer, on_room

    def station(self, life: Life) -> KvStation:
        """As Way."""
        spec, events = life.member.spec, self._events
        offered = self._offers.to(spec)
        arguments = (self._clock, life.index, spec, offered)
        if life.member.pool not in self._prefill_pools:
            station = KvStation(*arguments, self._on_answer, events, self.serve)
        elif self._apart is not None and self._apart.layerwise:
            station = ChunkedStation(*arguments, self._prefilled, events, self.serve)
            station.on_chunk = self._computed
        else:
            station = KvStation(*arguments, self._prefilled, events, self.serve)
        self._stations[life.index] = station
        self._lines[life.index] = OrderedDict()
        if self._tiers is not None:
            self._tiers.begin(life.index)
        return station

    def passes(self, job: Job, queued: int) -> bool:
        """Who is prefilled where it decodes does not wait behind those who wait for a prefill replica."""
        trip = self._trips[job] = Trip(job)
        if self._locality is None:
            return False
        trip.fits = not self._locality.is_too_long(job)
        stations = [self._stations[life.index] for life in self._decodes()]
        if not trip.fits or self._locality.is_local(job, queued, stations):
            return True
        trip.prefill = Job(job.request, job.arrived_ns, job.prompt_tokens, 1, job.prompt_tokens)
        self._of_prefill[trip.prefill] = trip
        return False

    def room(self, job: Job) -> Sequence[Life] | None:
        """As Way; layer by layer, blocks are held at a decode replica from here on."""
        trip = self._trips[job]
        if self._apart is None:
            return below_limit(self._roster.serving, self._limit) or None
        if trip.prefill is None:
            waits = trip.fits and self._limit is not None and not below_limit(self._decodes(), self._limit)
            return None if waits else ()
        prefills = self._prefills() if self._choice is not None else self._by_load(self._prefills(), trip)
        takers = [life for life in prefills if self._stations[life.index].takes(trip.prefill)]
        takers = [life for life in below_limit(takers, self._limit) if not life.unlinked]
        if not takers or (self._apart.layerwise and not self._find_room(trip)):
            return None
        return takers

    def send(self, job: Job, room: Sequence[Life]) -> bool:
        """As Way."""
        trip = self._trips[job]
        if self._apart is None:
            assert self._choice is not None, "only where prefill is apart there may be no router"
            trip.target = self._choice.of(job.request, room)
            return self._stand_in_line(trip, trip.target, job)
        if not trip.fits:
            for life in self._decodes()[:1]:
                self._stations[life.index].turn_away(job)
            return False
        self._underway[trip] = None
        if trip.prefill is None:
            self._to_decode[trip] = None
            self._serve_decode()
            return True
        trip.source = room[0] if self._choice is None else self._choice.of(job.request, room)
        self._stations[trip.source.index].claim(trip.prefill)
        return self._stand_in_line(trip, trip.source, trip.prefill)

    def withdraw(self, job: Job) -> None:
        """As Way."""
        trip = self._trips[job]
        if job.row < 0:
            self._give_up(trip)
        elif trip.target is not None:
            self._stations[trip.target.index].cancel(job)
            self._roster.check_drained(trip.target)
        self._serve_all()

    def answered(self, job: Job) -> None:
        """As Way."""
        self._has_computed(self._roster.lives[job.life], job)
        self._serve_line(job.life)
        self._serve_decode()

    def dropped(self, life: Life, jobs: list[Job]) -> list[Job]:
        """As Way; what is sent to other replicas is decided for each request, as for its job."""
        lost = [job for job in jobs if job in self._trips]
        for trip in [trip for trip in self._underway if life in (trip.source, trip.target)]:
            if life is trip.computes or not self._take_up(trip):
                self._give_up(trip)
                lost.append(trip.decode)
        return lost

    def unlinked(self, life: Life) -> list[Job]:
        """As Way."""
        if self._tiers is not None and life.index in self._stations:
            self._tiers.unlink(life.index)
        lost = []
        for trip in [trip for trip in self._underway if life in (trip.source, trip.target)]:
            reads = trip.shared_reads and life is trip.computes
            if reads or (trip.handed_over and not self._take_up(trip)):
                self._give_up(trip)
                lost.append(trip.decode)
        return lost

    def serve(self) -> None:
        """As Way."""
        self._serve_all()
        self._on_room()

    def waiting(self, pool: str, queued: int) -> int:
        """As Way; who waits for both counts for both."""
        if self._apart is None:
            return queued
        if pool in self._prefill_pools:
            return queued
        at_door = queued if self._apart.layerwise or self._limit is not None else 0
        return at_door + len(self._to_decode)

    def trip_of(self, job: Job) -> Trip:
        """A job's way so far."""
        return self._trips[job]

    def handover(self, last: Sequence[Job | None]) -> HandoverTotals | None:
        """What went from prefill to decode; of requests, given by their `last` jobs, where they were prefilled."""
        if self._apart is None:
            return None
        given = [self._trips[job] for job in last if job is not None and job.row >= 0]
        local = sum(trip.prefill is None for trip in given)
        return self._links.totals(len(given) - local, local, self._taken_up, self._most_kept)

    def tier_totals(self) -> tuple[TierTotals, ...]:
        """Each tier's."""
        return () if self._tiers is None else self._tiers.totals()

    def _prefilled(self, job: Job) -> None:
        """A prefill replica has computed a prompt."""
        trip = self._of_prefill[job]
        assert trip.source is not None, "it was prefilled there"
        trip.prefilled_ns = int(self._clock.now)
        self._has_computed(trip.source, job)
        prefills = [station for station in self._stations.values() if station.kept_blocks]
        self._most_kept = max(self._most_kept, max((station.kept_blocks for station in prefills), default=0))
        if trip.target is None:
            self._to_decode[trip] = None
            self._serve_decode()
        elif self._links.is_there(trip):
            self._arrived(trip)
        self._serve_line(trip.source.index)
        if self._limit is not None:  # it counts no more here
            self._on_room()

    def _computed(self, chunk: Chunk) -> None:
        """Layer-wise: a step of a prefill replica computes some of a prompt; it is under way."""
        trip = self._of_prefill[chunk.job]
        if trip.target is None or not chunk.job.open:
            return
        self._links.leave_by_layer(trip, chunk)

    def _serve_decode(self) -> None:
        """Let go to the decode replicas what there is room for, in order."""
        while True:
            trip = next((trip for trip in self._to_decode if self._can_leave(trip)), None)
            if trip is None or not self._find_room(trip):
                return
            del self._to_decode[trip]
            if trip.prefill is not None:
                self._links.leave(trip)

    def _can_leave(self, trip: Trip) -> bool:
        """Whether a link of its is up at both ends."""
        if trip.source is None:
            return True
        return not trip.source.unlinked and any(not life.unlinked for life in self._decodes())

    def _find_room(self, trip: Trip) -> bool:
        """Hold blocks for a job at the decode replica with least to do that has room; who is prefilled there goes."""
        job = trip.decode
        for life in self._by_load(below_limit(self._decodes(), self._limit), trip):
            if trip.prefill is None:
                if self._begin_reads(trip, life, job):
                    return True
                continue
            blocks = (job.prompt_tokens - 1) // self._block_tokens
            missing = None if life.unlinked else self._stations[life.index].make_room(job, blocks)
            if missing is not None:
                self._links.aim(trip, life, blocks, missing)
                return True
        return False

    def _by_load(self, lives: Sequence[Life], trip: Trip) -> Sequence[Life]:
        """The least loaded first: tokens that it has not done, and what of this prompt it has not cached."""
        if len(lives) == 1:
            return lives

        def load(life: Life) -> int:
            station = self._stations[life.index]
            cached = station.cached_tokens(trip.decode.request) if self._shares_content else 0
            return station.load_tokens - cached

        return sorted(lives, key=load)

    def _arrived(self, trip: Trip) -> None:
        """A job is at the replica that decodes it, with its KV if that came from elsewhere."""
        assert trip.target is not None, "there is room"
        self._stations[trip.target.index].give(trip.decode)
        del self._underway[trip]
        trip.moved_ns += int(self._clock.now) - max(trip.departs_ns, trip.prefilled_ns)
        if trip.prefill is not None and trip.source is not None:
            self._stations[trip.source.index].part_with(trip.prefill)
            self._serve_line(trip.source.index)
            self._roster.check_drained(trip.source)
            self._on_room()

    def _stand_in_line(self, trip: Trip, life: Life, job: Job) -> bool:
        """A job is to be computed by a replica, once what a tier has of it is there. False: it is too long for it."""
        station = self._stations[life.index]
        if not station.fits(job):
            station.turn_away(job)
            return False
        self._underway[trip] = None
        if self._tiers is None:
            station.give(job)
            return True
        station.expect(job)
        self._lines[life.index][trip] = None
        self._serve_line(life.index)
        return True

    def _serve_line(self, life: int) -> None:
        """Let those who wait for blocks of a replica begin, in order."""
        line = self._lines[life]
        while line:
            trip = next(iter(line))
            replica = self._roster.lives[life]
            job = trip.prefill if trip.source is replica and trip.prefill is not None else trip.decode
            if not self._begin_reads(trip, replica, job):
                return
            line.pop(trip, None)

    def _begin_reads(self, trip: Trip, life: Life, job: Job) -> bool:
        """Hold blocks for what tiers have of a prompt and read it; False if there is no room for it now."""
        station = self._stations[life.index]
        reads = self._tiers.reads(life, station, job) if self._tiers is not None else NO_READS
        blocks = self._tiers.blocks(reads, station.block_tokens) if self._tiers is not None else 0
        missing = station.make_room(job, blocks)
        if missing is None:
            return False
        now = int(self._clock.now)
        job.kv_tokens = missing * station.block_tokens
        if job is trip.decode:
            trip.target, trip.departs_ns = life, now
        if not reads or self._tiers is None:
            self._fetched(trip, life, job, now)
            return True
        trip.shared_reads = self._tiers.any_shared(reads)
        trip.reads = self._tiers.fetch(life.index, job, reads, lambda: self._part_fetched(trip, life, job, now))
        trip.reading = len(trip.reads)
        return True

    def _part_fetched(self, trip: Trip, life: Life, job: Job, begun_ns: int) -> None:
        trip.reading -= 1
        if trip.reading == 0:
            self._fetched(trip, life, job, begun_ns)

    def _fetched(self, trip: Trip, life: Life, job: Job, begun_ns: int) -> None:
        """What tiers have of a prompt, read since `begun_ns`, is there."""
        trip.reads, trip.shared_reads = [], False
        if job is trip.decode:
            self._arrived(trip)
            return
        trip.moved_ns += int(self._clock.now) - begun_ns
        self._stations[life.index].give(job)

    def _has_computed(self, life: Life, job: Job) -> None:
        if self._tiers is not None:
            self._tiers.computed(life, self._stations[life.index], job)

    def _take_up(self, trip: Trip) -> bool:
        """Whether KV that was on its way is still where it was computed, and may be sent to another replica."""
        policy = self._lost_jobs
        if trip.source is None or policy.policy != "resume" or trip.taken_up >= policy.most:
            return False
        trip.taken_up += 1
        self._taken_up += 1
        self._break_off(trip)
        if trip.prefilled_ns > 0:
            self._to_decode[trip] = None
        return True

    def _give_up(self, trip: Trip) -> None:
        """Free whatever a trip holds, wherever; it must not have arrived."""
        self._underway.pop(trip, None)
        self._to_decode.pop(trip, None)
        for transfer in trip.reads:
            transfer.give_up()
        trip.reads, trip.reading, trip.shared_reads = [], 0, False
        self._break_off(trip)
        if trip.source is not None and trip.prefill is not None:
            self._lines[trip.source.index].pop(trip, None)
            self._stations[trip.source.index].abandon(trip.prefill)
            self._roster.check_drained(trip.source)

    def _break_off(self, trip: Trip) -> None:
        """What is on links to a decode replica goes no further, and no blocks are held there."""
        target = trip.target
        self._links.break_off(trip)
        if target is not None:
            self._lines[target.index].pop(trip, None)
            self._stations[target.index].abandon(trip.decode)
            self._roster.check_drained(target)

    def _serve_all(self) -> None:
        for life, line in list(self._lines.items()):
            if line:
                self._serve_line(life)
        self._serve_decode()

    def _gone(self, life: Life) -> None:
        if self._tiers is not None and life.index in self._stations:
            self._tiers.end(life.index)

    def _prefills(self) -> list[Life]:
        return [life for life in self._roster.serving if life.member.pool in self._prefill_pools]

    def _decodes(self) -> list[Life]:
        return [life for life in self._roster.serving if life.member.pool not in self._prefill_pools]
