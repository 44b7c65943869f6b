"""The better of two replicas drawn at random: nearly as good as looking at all, at constant cost.

Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12(10), 2001.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict

from simkit.cluster.routers.least_outstanding import Load, load_code
from simkit.cluster.routers.router import BETTER_OF_TWO, Rule, View


class PowerOfTwo(BaseModel):
    """Draws two different replicas and takes the one with less unanswered, the first drawn on a tie."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    load: Load = "requests"

    def router(self, rng: np.random.Generator) -> "BetterOfTwo":
        """A router that draws from `rng`, twice a request."""
        return BetterOfTwo(rng, self.load)


class BetterOfTwo:
    """Looks at two replicas."""

    def __init__(self, rng: np.random.Generator, load: Load) -> None:
        self._rng = rng
        self._load = load
        self.rule = Rule(BETTER_OF_TWO, load_code(load), draws=2)

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request."""
        draws = self._rng.random(2)
        if len(fleet) == 1:
            return 0
        first = int(draws[0] * len(fleet))
        second = (first + 1 + int(draws[1] * (len(fleet) - 1))) % len(fleet)
        of = fleet.outstanding_tokens if self._load == "tokens" else fleet.outstanding
        return second if of(second) < of(first) else first
