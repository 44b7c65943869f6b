"""Each replica in turn."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from simkit.cluster.routers.router import View
from simkit.engine.state import I64
from simkit.workloads.workload import Workload


class RoundRobin(BaseModel):
    """Request i goes to replica i modulo their number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def router(self, rng: np.random.Generator) -> "InTurn":
        """It draws nothing from `rng`."""
        return InTurn()


class InTurn:
    """Counts what it sends."""

    def __init__(self) -> None:
        self._sent = 0

    def shares(self, workload: Workload, replicas: int) -> I64:
        """[n] the replica of each request."""
        return np.arange(len(workload), dtype=np.int64) % replicas

    def choose(self, request: int, fleet: View) -> int:
        """The next replica of those that are there."""
        self._sent += 1
        return (self._sent - 1) % len(fleet)
