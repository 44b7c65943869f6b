"""Short requests to one pool, long ones to another: neither waits behind, nor stretches, the steps of the other."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from simkit.cluster.routers.least_outstanding import least
from simkit.cluster.routers.router import View
from simkit.errors import InputError


class ByLength(BaseModel):
    """Pools by the tokens, prompt and expected answer, that they take at most; in a pool the least outstanding."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    most_tokens: dict[str, int] = Field(
        description="of each pool, in ascending order; the last takes all that is longer"
    )

    @field_validator("most_tokens")
    @classmethod
    def _ascending(cls, given: dict[str, int]) -> dict[str, int]:
        bounds = list(given.values())
        if not bounds or bounds != sorted(bounds) or bounds[0] < 1:
            raise ValueError("name each pool with the most tokens it takes, in ascending order")
        return given

    def router(self, rng: np.random.Generator) -> "Lanes":
        """A router that draws from `rng`, once a request."""
        return Lanes(self.most_tokens, rng)


class Lanes:
    """Picks the pool, then the replica."""

    def __init__(self, most_tokens: dict[str, int], rng: np.random.Generator) -> None:
        self._bounds = most_tokens
        self._rng = rng

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request; where its pool has none at the moment, one of the pools for longer ones."""
        tokens = fleet.expected_tokens(request)
        names = list(self._bounds)
        first = next((i for i, name in enumerate(names) if tokens <= self._bounds[name]), len(names) - 1)
        draw = float(self._rng.random())
        for name in [*names[first:], *reversed(names[:first])]:
            here = [i for i in range(len(fleet)) if fleet.pool(i) == name]
            if here:
                return here[least([fleet.outstanding(i) for i in here], draw)]
        known = ", ".join(sorted({fleet.pool(i) for i in range(len(fleet))}))
        raise InputError(f"cluster.router.most_tokens: names no pool of the cluster; its pools are {known}")
