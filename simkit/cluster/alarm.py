"""Something happens at a time: the one kind of event that the fleet puts on SimPy's clock besides its processes."""

from collections.abc import Callable

import simpy
from simpy.events import NORMAL, URGENT


class Alarm(simpy.Event):  # type: ignore[misc]
    """Calls `action` when it is `at_ns`, unless it was put off before."""

    def __init__(
        self, clock: simpy.Environment, at_ns: int, action: Callable[[], None], before_others: bool = False
    ) -> None:
        """`before_others`: of what happens at the same time, this comes before arrivals and decisions."""
        super().__init__(clock)
        self.at_ns = at_ns
        self._action: Callable[[], None] | None = action
        self._ok = True
        self._value = None
        self.callbacks.append(self._ring)
        clock.schedule(self, URGENT if before_others else NORMAL, max(0, at_ns - int(clock.now)))

    def put_off(self) -> None:
        """Let the time pass without anything happening."""
        self._action = None

    def _ring(self, event: simpy.Event) -> None:
        if self._action is not None:
            self._action()
