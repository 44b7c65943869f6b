"""The replica with the least work unanswered: join the shortest queue."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from simkit.cluster.routers.router import LEAST, REQUESTS, TOKENS, Rule, View

Load = Literal["requests", "tokens"]


class LeastOutstanding(BaseModel):
    """Looks at every replica; of those with equally little, one at random, so that an idle fleet fills evenly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    load: Load = "requests"

    def router(self, rng: np.random.Generator) -> "ShortestQueue":
        """A router that draws from `rng`, once a request."""
        return ShortestQueue(rng, self.load)


class LeastTokens(LeastOutstanding):
    """The same, where a request counts with its prompt and the answer expected of it."""

    load: Load = "tokens"


class ShortestQueue:
    """Joins it."""

    def __init__(self, rng: np.random.Generator, load: Load) -> None:
        self._rng = rng
        self._load = load
        self.rule = Rule(LEAST, load_code(load))

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request."""
        return least(loads(fleet, self._load), float(self._rng.random()))


def load_code(load: Load) -> int:
    """The compiled loop's name for it."""
    return TOKENS if load == "tokens" else REQUESTS


def loads(fleet: View, load: Load) -> list[int]:
    """What each replica has not answered."""
    if load == "tokens":
        return [fleet.outstanding_tokens(replica) for replica in range(len(fleet))]
    return [fleet.outstanding(replica) for replica in range(len(fleet))]


def least(loads: Sequence[float], draw: float) -> int:
    """Where the smallest is; of several, the one that `draw`, 0 to 1, picks."""
    smallest = min(loads)
    equal = [replica for replica, load in enumerate(loads) if load == smallest]
    return equal[int(draw * len(equal))]
