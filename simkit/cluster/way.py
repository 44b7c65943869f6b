"""How a request gets from the door to the replica that answers it: at once, or with stations on the way."""

import operator
from collections.abc import Callable, Sequence
from typing import Protocol

import simpy

from simkit.cluster.job import Job
from simkit.cluster.offers import Offers
from simkit.cluster.plug_in import OwnCode
from simkit.cluster.roster import Life, Roster
from simkit.cluster.routers import Router, View
from simkit.cluster.station import Station
from simkit.cluster.view import FleetView
from simkit.errors import InputError


class Way(Protocol):
    """What the door asks. A job is sent once; who is sent may be withdrawn, or lost with what it was on."""

    def attend(self, on_answer: Callable[[Job], None], on_room: Callable[[], None]) -> None:
        """Before time begins: whom to tell of answers, and that there may be room for more."""

    def station(self, life: Life) -> Station:
        """A replica with an empty cache, for a life that begins."""

    def passes(self, job: Job, queued: int) -> bool:
        """Whether a job that comes does not wait behind the `queued` at the door. Asked first, once a job."""

    def room(self, job: Job) -> Sequence[Life] | None:
        """The replicas to choose from, if any; None: the job must wait at the door.

        Who has room is sent, or withdrawn, before anything else happens.
        """

    def send(self, job: Job, room: Sequence[Life]) -> bool:
        """Let a job in, `room` being what was just said of it; False: it is too long and was turned away."""

    def withdraw(self, job: Job) -> None:
        """Nobody waits for a job any more."""

    def answered(self, job: Job) -> None:
        """The last token of a job is out; its client was told."""

    def dropped(self, life: Life, jobs: list[Job]) -> list[Job]:
        """A replica that had `jobs` is gone, or cannot be reached: all who are lost with it, none of them sent now."""

    def unlinked(self, life: Life) -> list[Job]:
        """No KV comes to a replica or from it for a while: who is lost with what was on the links."""

    def serve(self) -> None:
        """Something has changed: go on with whom there is room for now."""

    def waiting(self, pool: str, queued: int) -> int:
        """Requests that wait for a replica of a pool, where `queued` are at the door."""


class Choice:
    """A router, asked about replicas that are there."""

    def __init__(self, name: str, router: Router, view: FleetView) -> None:
        """`name` is for messages."""
        self._name = name
        self._router = router
        self._view = view

    def of(self, request: int, room: Sequence[Life]) -> Life:
        """The replica for a request; InputError if the router names one that is not there."""
        return room[asked(self._router, self._name, request, self._view.over(room))]


class Straight:
    """A request is sent to one replica, which does all of it."""

    def __init__(
        self, clock: simpy.Environment, roster: Roster, offers: Offers, events: int, choice: Choice, limit: int | None
    ) -> None:
        """`events` is the length of each replica's log of first events, `limit` the most requests of one at a time."""
        self._clock = clock
        self._roster = roster
        self._offers = offers
        self._events = events
        self._choice = choice
        self._limit = limit

    def attend(self, on_answer: Callable[[Job], None], on_room: Callable[[], None]) -> None:
        """As Way."""
        self._on_answer = on_answer

    def station(self, life: Life) -> Station:
        """As Way."""
        spec = life.member.spec
        return Station(self._clock, life.index, spec, self._offers.to(spec), self._on_answer, self._events)

    def passes(self, job: Job, queued: int) -> bool:
        """Nobody does."""
        return False

    def room(self, job: Job) -> Sequence[Life] | None:
        """As Way."""
        return below_limit(self._roster.serving, self._limit) or None

    def send(self, job: Job, room: Sequence[Life]) -> bool:
        """As Way."""
        station = self._choice.of(job.request, room).station
        assert station is not None, "only replicas that are ready have room"
        if station.fits(job):
            station.give(job)
            return True
        station.turn_away(job)
        return False

    def withdraw(self, job: Job) -> None:
        """As Way."""
        if job.life < 0:
            return
        life = self._roster.lives[job.life]
        assert life.station is not None, "jobs are only at stations"
        life.station.cancel(job)
        self._roster.check_drained(life)

    def answered(self, job: Job) -> None:
        """As Way."""

    def dropped(self, life: Life, jobs: list[Job]) -> list[Job]:
        """As Way."""
        return jobs

    def unlinked(self, life: Life) -> list[Job]:
        """No KV is moved here."""
        raise InputError("faults: link_down is of the links that KV is moved on; it needs disaggregation or tiers")

    def serve(self) -> None:
        """As Way."""

    def waiting(self, pool: str, queued: int) -> int:
        """As Way."""
        return queued


def below_limit(lives: Sequence[Life], limit: int | None) -> Sequence[Life]:
    """Those of them with fewer requests than the limit, if there is one."""
    if limit is None:
        return lives
    return [life for life in lives if life.station is not None and life.station.booked < limit]


def asked(router: Router, name: str, request: int, view: View) -> int:
    """The replica that a router, called `name`, chooses; InputError for none that is there, or a failure of it."""
    with OwnCode(f"router {name}", "; choose(request, fleet) must return a number"):
        choice = operator.index(router.choose(request, view))
    if not 0 <= choice < len(view):
        raise no_such_replica(name, request, choice, len(view))
    return choice


def no_such_replica(name: str, request: int, replica: int, replicas: int) -> InputError:
    """What is said of a router that names a replica that is not there."""
    return InputError(f"router {name}: sent request {request} to replica {replica}; there are 0 to {replicas - 1}")
