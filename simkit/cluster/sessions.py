"""Closed loops: who waits for an answer before asking again. Chats with think times, agents with tools and sub-agents.

A request may follow from others of its session (`parent_id`: ids of requests, separated by blanks; a sub-agent's first
request follows from its caller's, the caller's next one from both). It comes `think_us` after the last of them is
answered. Without `parent_id` a session's requests follow one another in the workload's order.
"""

from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simkit.cluster.alarm import Alarm
from simkit.cluster.live import House, open_arrivals
from simkit.errors import InputError
from simkit.metrics.result import Status
from simkit.workloads.workload import Workload


class Sessions(BaseModel):
    """How sessions are replayed: `open` at the times of the trace, `closed` by answers and think times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replay: Literal["open", "closed"] = "closed"
    users: int | None = Field(
        default=None, ge=1, description="so many users go through the sessions, one after another; default: each "
        "session starts at the time of its first request"
    )  # fmt: skip
    think_s: float | None = Field(default=None, ge=0, le=1e6, description="where the workload has no think_us")
    longest_think_s: float | None = Field(default=None, ge=0, le=1e6, description="longer pauses are cut to this")
    after_failure: Literal["stop", "go_on"] = Field(default="stop", description="a session whose request got no answer")


def session_arrivals(spec: Sessions, workload: Workload) -> Callable[[House], None]:
    """The process that brings a workload's requests in; InputError if it does not say who follows whom."""
    if spec.replay == "open":
        return open_arrivals
    return ClosedLoops(spec, workload)


class ClosedLoops:
    """Requests by row; each waits for those it follows from."""

    def __init__(self, spec: Sessions, workload: Workload) -> None:
        self._spec = spec
        self.parents = parents_of(workload)
        self._think_ns = think_times_ns(spec, workload, self.parents)
        self._arrival_ns = (workload.arrival_us * 1000).tolist()
        self._children: list[list[int]] = [[] for _ in self.parents]
        self._missing = [len(parents) for parents in self.parents]
        for request, parents in enumerate(self.parents):
            for parent in parents:
                self._children[parent].append(request)
        self._left = _requests_left(workload, self.parents)
        self._session = _session_numbers(workload, self.parents)
        self._waiting_sessions: deque[list[int]] = deque()

    def __call__(self, house: House) -> None:
        """Start the sessions: at their own times, or as users get to them."""
        self._house = house
        house.door.on_over.append(self._over)
        roots: dict[int, list[int]] = {}
        for request, parents in enumerate(self.parents):
            if not parents:
                roots.setdefault(self._session[request], []).append(request)
        if self._spec.users is None:
            for starts in roots.values():
                for request in starts:
                    self._come_at(request, self._arrival_ns[request])
            return
        self._waiting_sessions.extend(roots.values())
        for _ in range(min(self._spec.users, len(self._waiting_sessions))):
            self._start_session()

    def _start_session(self) -> None:
        """A user begins the next session; its first requests keep their distances."""
        starts = self._waiting_sessions.popleft()
        first = min(self._arrival_ns[request] for request in starts)
        now = int(self._house.clock.now)
        for request in starts:
            self._come_at(request, now + self._arrival_ns[request] - first)

    def _come_at(self, request: int, at_ns: int) -> None:
        Alarm(self._house.clock, at_ns, lambda: self._house.door.arrive(request))

    def _over(self, request: int) -> None:
        """A request is over: those that follow from it come, or are never asked."""
        answered = self._house.door.status[request] is Status.FINISHED
        if answered or self._spec.after_failure == "go_on":
            for child in self._children[request]:
                self._missing[child] -= 1
                if self._missing[child] == 0:
                    self._come_at(child, int(self._house.clock.now) + self._think_ns[child])
        else:
            self._skip_all_after(request)
        self._count_out(request)

    def _skip_all_after(self, request: int) -> None:
        """Nobody asks what follows from a request that got no answer."""
        after = [request]
        while after:
            for child in self._children[after.pop()]:
                if self._missing[child] > 0:
                    self._missing[child] = -1
                    self._house.door.skip(child)
                    self._count_out(child)
                    after.append(child)

    def _count_out(self, request: int) -> None:
        """One request less of its session; with the last its user is free."""
        session = self._session[request]
        self._left[session] -= 1
        if self._left[session] == 0 and self._waiting_sessions:
            self._start_session()


def parents_of(workload: Workload) -> list[list[int]]:
    """[n] rows that each request follows from; InputError if the workload has no sessions, or one names a stranger."""
    column = workload.extra.get("parent_id")
    if column is not None and any(value is not None for value in column):
        return _named_parents(workload, [None if value is None else str(value) for value in column])
    if workload.session_id is None:
        raise InputError("cluster.sessions: the workload names no session_id and no parent_id; replay it open")
    latest: dict[str, int] = {}
    parents: list[list[int]] = []
    for request, session in enumerate(workload.session_id):
        parents.append([latest[session]] if session and session in latest else [])
        latest[session] = request
    return parents


def _named_parents(workload: Workload, column: list[str | None]) -> list[list[int]]:
    ids = workload.request_id if workload.request_id is not None else tuple(map(str, range(len(workload))))
    row_of = {name: row for row, name in enumerate(ids)}
    parents: list[list[int]] = []
    for request, names in enumerate(column):
        rows = []
        for name in (names or "").split():
            if name not in row_of:
                raise InputError(f"workload row {request + 1}: parent_id {name!r} is no request of it; mend the row")
            if row_of[name] >= request:
                raise InputError(
                    f"workload row {request + 1}: parent_id {name!r} does not come before it; mend the row"
                )
            rows.append(row_of[name])
        parents.append(rows)
    return parents


def think_times_ns(spec: Sessions, workload: Workload, parents: list[list[int]]) -> list[int]:
    """[n] ns between the last answer that a request waits for and the request."""
    column = workload.extra.get("think_us")
    default = None if spec.think_s is None else round(spec.think_s * 1e9)
    longest = None if spec.longest_think_s is None else round(spec.longest_think_s * 1e9)
    found = []
    for request, follows in enumerate(parents):
        value = None if column is None else column[request]
        think = default if value is None else int(value) * 1000
        if think is None:
            if follows:
                raise InputError(
                    f"cluster.sessions: workload row {request + 1} has no think_us; give cluster.sessions.think_s"
                )
            think = 0
        found.append(think if longest is None else min(think, longest))
    return found


def _session_numbers(workload: Workload, parents: list[list[int]]) -> list[int]:
    """[n] a number for each session: by name where there is one, else by the first request it all follows from."""
    numbers: dict[str, int] = {}
    found: list[int] = []
    for request, follows in enumerate(parents):
        name = workload.session_id[request] if workload.session_id is not None else ""
        if name:
            found.append(numbers.setdefault(name, len(numbers)))
        elif follows:
            found.append(found[follows[0]])
        else:
            found.append(numbers.setdefault(f"\n{request}", len(numbers)))
    return found


def _requests_left(workload: Workload, parents: list[list[int]]) -> list[int]:
    """[sessions] their requests."""
    counts: list[int] = np.bincount(np.array(_session_numbers(workload, parents), dtype=np.int64)).tolist()
    return counts
