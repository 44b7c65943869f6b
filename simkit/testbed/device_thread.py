"""The device's own thread: it computes, or waits for what computes, while the caller plans the next step."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from simkit.engine.state import I64
from simkit.testbed.executor import Finished


class DeviceThread:
    """Steps one after the other, in the order in which they were submitted; the thread starts with the first."""

    def __init__(self, enter: Callable[[], None] | None = None) -> None:
        """`enter` is called in the thread before its first step, to bind it to cores."""
        self._pool = ThreadPoolExecutor(1, "device", initializer=enter)

    def submit(self, work: Callable[[], I64], now_ns: Callable[[], int]) -> Future[Finished]:
        """Let `work` give a step's tokens; what it raises, `result` raises."""

        def timed() -> Finished:
            tokens = work()
            return Finished(tokens, now_ns())

        return self._pool.submit(timed)
