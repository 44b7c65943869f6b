"""Time as it passes."""

import time
from typing import Protocol


class Clock(Protocol):
    """What the testbed needs of a clock; ns from the start of the run."""

    def now_ns(self) -> int:
        """The time; it never goes back."""

    def sleep_until(self, time_ns: int) -> None:
        """Return at `time_ns` or soon after."""


class WallClock:
    """The monotonic clock of this machine, from the moment it was made."""

    def __init__(self) -> None:
        self._start_ns = time.perf_counter_ns()

    def now_ns(self) -> int:
        """Nanoseconds since the start."""
        return time.perf_counter_ns() - self._start_ns

    def sleep_until(self, time_ns: int) -> None:
        """Sleep; the operating system may oversleep by a fraction of a millisecond."""
        ahead = time_ns - self.now_ns()
        if ahead > 0:
            time.sleep(ahead / 1e9)
