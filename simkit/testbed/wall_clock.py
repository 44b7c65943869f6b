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


class ProcessorClock:
    """The CPU time that this process was given, plus what it would have slept, which it skips.

    For a machine that others use as well: what they take does not count, though they still share caches and memory.
    It is wall time of a machine of one's own as long as one thread computes.
    """

    def __init__(self) -> None:
        self._start_ns = time.process_time_ns()

    def now_ns(self) -> int:
        """Nanoseconds since the start."""
        return time.process_time_ns() - self._start_ns

    def sleep_until(self, time_ns: int) -> None:
        """Let it be `time_ns` at once."""
        self._start_ns -= max(0, time_ns - self.now_ns())


CLOCKS: dict[str, type[WallClock] | type[ProcessorClock]] = {"wall": WallClock, "processor": ProcessorClock}
