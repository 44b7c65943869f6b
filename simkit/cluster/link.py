"""A link between replicas, nodes or tiers: transfers on it at the same time share its bandwidth equally.

Processor sharing by virtual time: `_served` is what a transfer that was there from the beginning would have got, so a
transfer of b bytes that starts at s is through when `_served` reaches s + b; only the next end is on the clock.
"""

import heapq
import itertools
import math

import simpy

from simkit.cluster.alarm import Alarm
from simkit.errors import InputError


class Transfer(simpy.Event):  # type: ignore[misc]
    """Bytes on their way: happens when they are all there, and never if it is given up before."""

    def __init__(self, clock: simpy.Environment, link: "Link", size: int) -> None:
        super().__init__(clock)
        self.size = size
        self._link = link
        self._left: int | None = None  # bytes that never went; None: it was not given up

    def give_up(self) -> int:
        """Take it off the link, whose bandwidth the others have then; returns the bytes that were moved."""
        if self._left is None:
            self._left = self._link.take_off(self)
            if self.callbacks is not None:
                self.callbacks.clear()
        return self.size - self._left


class Link:
    """One direction of a link; bytes and ns. Work is conserved: k transfers together take as long as one by one."""

    def __init__(self, clock: simpy.Environment, bytes_per_s: float, latency_ns: int = 0) -> None:
        """`latency_ns` is added to each transfer after its last byte has left. InputError unless bandwidth > 0."""
        if not 0 < bytes_per_s < math.inf or latency_ns < 0:
            raise InputError(f"link: {bytes_per_s:g} bytes/s, latency {latency_ns} ns; bandwidth must be above 0")
        self.busy_ns = 0  # time in which something was on it
        self.bytes = 0  # that were moved or, of transfers under way, are to be
        self._clock = clock
        self._bytes_per_ns = bytes_per_s / 1e9
        self._latency_ns = latency_ns
        self._served = 0.0  # bytes
        self._since_ns = 0  # when `_served` was brought up to date
        self._due: list[tuple[float, int, Transfer]] = []
        self._numbers = itertools.count()
        self._alarm: Alarm | None = None

    def transfer(self, size: int) -> Transfer:
        """Start to move `size` bytes; the event happens when they are there."""
        self._catch_up()
        self.bytes += size
        there = Transfer(self._clock, self, size)
        heapq.heappush(self._due, (self._served + size, next(self._numbers), there))
        self._set_alarm()
        return there

    def take_off(self, transfer: Transfer) -> int:
        """Move a transfer no further; returns how many of its bytes have not left."""
        self._catch_up()
        due = next((due for due, _, other in self._due if other is transfer), None)
        if due is None:
            return 0
        left = min(transfer.size, max(0, math.ceil(due - self._served)))
        self.bytes -= left
        self._due = [entry for entry in self._due if entry[2] is not transfer]
        heapq.heapify(self._due)
        if not self._due:
            self._served = 0.0
        self._set_alarm()
        return left

    @property
    def active(self) -> int:
        """Transfers under way."""
        return len(self._due)

    def _catch_up(self) -> None:
        now = int(self._clock.now)
        if self._due:
            self._served += (now - self._since_ns) * self._bytes_per_ns / len(self._due)
            self.busy_ns += now - self._since_ns
        self._since_ns = now

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.put_off()
            self._alarm = None
        if self._due:
            left_ns = (self._due[0][0] - self._served) * len(self._due) / self._bytes_per_ns
            at_ns = int(self._clock.now) + max(0, math.ceil(left_ns - 1e-6))
            self._alarm = Alarm(self._clock, at_ns, self._end_next, before_others=True)

    def _end_next(self) -> None:
        self._alarm = None
        self._catch_up()
        due, _, there = heapq.heappop(self._due)
        # rounding up to whole ns lets the count run past by less than a ns's worth
        self._served = max(self._served, due)
        if not self._due:
            self._served = 0.0
        Alarm(self._clock, int(self._clock.now) + self._latency_ns, there.succeed)
        self._set_alarm()
