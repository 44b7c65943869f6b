"""A replica at random: it splits Poisson arrivals into independent Poisson streams."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from simkit.cluster.routers.router import View
from simkit.engine.state import I64
from simkit.workloads.workload import Workload


class RandomSplit(BaseModel):
    """Each request goes to each replica with the same probability, whatever happened before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def router(self, rng: np.random.Generator) -> "Lottery":
        """A router that draws from `rng`, once a request."""
        return Lottery(rng)


class Lottery:
    """Draws a replica."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def shares(self, workload: Workload, replicas: int) -> I64:
        """[n] the replica of each request."""
        return (self._rng.random(len(workload)) * replicas).astype(np.int64)

    def choose(self, request: int, fleet: View) -> int:
        """Any replica."""
        return int(self._rng.random() * len(fleet))
