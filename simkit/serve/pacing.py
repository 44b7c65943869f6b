"""Simulated time in wall time: absolute deadlines, so that being late once does not make everything later."""

import asyncio
import time


class PacedClock:
    """`scale` simulated nanoseconds pass in one real one, from the moment the clock was made."""

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._start_ns = time.monotonic_ns()

    def now_ns(self) -> int:
        """The simulated time."""
        return int((time.monotonic_ns() - self._start_ns) * self._scale)

    def late_s(self, due_ns: int) -> float:
        """By how many real seconds the simulated moment `due_ns` is past; below 0 if it is to come."""
        return (time.monotonic_ns() - self._start_ns) / 1e9 - due_ns / self._scale / 1e9

    async def sleep_until(self, due_ns: int) -> None:
        """Let others run, until the simulated time is `due_ns` at least."""
        ahead = -self.late_s(due_ns)
        await asyncio.sleep(max(0.0, ahead))
        # event loops wake up to a clock tick early
        while (ahead := -self.late_s(due_ns)) > 0:
            await asyncio.sleep(ahead)
