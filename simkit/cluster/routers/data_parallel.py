"""vLLM's own balancing of data-parallel engines: the rank with the smallest 4 x waiting + running.

Source: vLLM v1 core_client.py, DPLBAsyncMPClient.get_core_engine_for_request: counts arrive from the coordinator every
100 ms; the client adds what it sends meanwhile to the waiting of its choice; ranks are tried in turn.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simkit.cluster.routers.router import View

WAITING_WEIGHT = 4


class DataParallel(BaseModel):
    """Counts of each engine, as old as the last report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    age_s: float = Field(default=0.1, ge=0, le=1e6, allow_inf_nan=False)

    def router(self, rng: np.random.Generator) -> "EngineCounts":
        """It draws nothing from `rng`."""
        return EngineCounts(round(self.age_s * 1e9))


class EngineCounts:
    """The latest counts, and what was sent since."""

    def __init__(self, age_ns: int) -> None:
        self._age_ns = age_ns
        self._next_ns = 0
        self._counts: dict[int, list[int]] = {}

    def choose(self, request: int, fleet: View) -> int:
        """The engine for a request."""
        if fleet.now_ns >= self._next_ns:
            self._next_ns = fleet.now_ns + self._age_ns
            # a count is fetched at the first request after it is due, which is when it would be used
            self._counts = {fleet.number(i): [*reversed(fleet.running_and_waiting(i))] for i in range(len(fleet))}
        scores = []
        for i in range(len(fleet)):
            waiting, running = self._counts.setdefault(fleet.number(i), [0, 0])
            scores.append(WAITING_WEIGHT * waiting + running)
        choice = scores.index(min(scores))
        self._counts[fleet.number(choice)][0] += 1
        return choice
