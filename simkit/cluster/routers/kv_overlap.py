"""The replica where a request costs least: blocks still to prefill plus blocks in use, as Dynamo's KV router has it.

Source: NVIDIA Dynamo, router design: cost = overlap weight x (prompt tokens - overlap) / block + blocks that decode if
it is sent there; the smallest cost, or at a temperature above 0 a softmax of the negated costs over their range.
"""

import math

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simkit.cluster.routers.least_outstanding import least
from simkit.cluster.routers.prefix_aware import cached
from simkit.cluster.routers.prefix_index import PrefixIndex
from simkit.cluster.routers.router import View


class KvOverlap(BaseModel):
    """Overlap against load, in one currency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    overlap_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    block_tokens: int = Field(default=16, ge=1)
    exact: bool = Field(default=True, description="the replicas report their caches; else what was sent is believed")

    def router(self, rng: np.random.Generator) -> "CheapestReplica":
        """A router that draws from `rng`, once a request."""
        return CheapestReplica(self, rng)


class CheapestReplica:
    """Reckons costs."""

    def __init__(self, settings: KvOverlap, rng: np.random.Generator) -> None:
        self._settings = settings
        self._rng = rng
        self._index = PrefixIndex()

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request."""
        settings = self._settings
        if settings.exact and settings.temperature == 0.0:
            return least(self._costs_that_matter(request, fleet), float(self._rng.random()))
        overlap = cached(request, fleet, self._index, settings.exact)
        choice = self._drawn([self._cost(request, fleet, i, overlap[i]) for i in range(len(fleet))])
        if not settings.exact:
            most = max(1, fleet.kv_tokens(choice) // fleet.content_tokens())
            self._index.sent(fleet.content(request), fleet.number(choice), most)
        return choice

    def _cost(self, request: int, fleet: View, replica: int, overlap: int) -> float:
        prompt, settings = fleet.prompt_tokens(request), self._settings
        held = fleet.outstanding_tokens(replica) + prompt
        return settings.overlap_weight * (prompt - overlap) / settings.block_tokens + held / settings.block_tokens

    def _costs_that_matter(self, request: int, fleet: View) -> list[float]:
        """Each replica's cost; infinity for those that would not be chosen even with all shared content cached.

        To ask a replica for its cache costs far more than to know its load.
        """
        most = min(fleet.prompt_tokens(request), len(fleet.content(request)) * fleet.content_tokens())
        floors = [self._cost(request, fleet, i, most) for i in range(len(fleet))]
        costs, smallest = [math.inf] * len(fleet), math.inf
        for i in sorted(range(len(fleet)), key=floors.__getitem__):
            if floors[i] > smallest:
                break
            costs[i] = self._cost(request, fleet, i, fleet.cached_tokens(i, request))
            smallest = min(smallest, costs[i])
        return costs

    def _drawn(self, costs: list[float]) -> int:
        draw = float(self._rng.random())
        span = max(costs) - min(costs)
        if self._settings.temperature == 0.0 or span == 0.0:
            return least(costs, draw)
        weights = [math.exp(-(cost - min(costs)) / span / self._settings.temperature) for cost in costs]
        total = 0.0
        for replica, weight in enumerate(weights):
            total += weight / sum(weights)
            if draw < total:
                return replica
        return len(costs) - 1
