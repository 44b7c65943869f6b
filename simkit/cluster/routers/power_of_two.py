"""The better of two replicas drawn at random: nearly as good as looking at all, at constant cost.

Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12(10), 2001.
"""

import numpy as np

from simkit.cluster.routers.router import View


class PowerOfTwo:
    """Draws two different replicas and takes the one with fewer unanswered requests, the first drawn on a tie."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request."""
        if len(fleet) == 1:
            return 0
        first = int(self._rng.integers(len(fleet)))
        second = (first + 1 + int(self._rng.integers(len(fleet) - 1))) % len(fleet)
        return second if fleet.outstanding(second) < fleet.outstanding(first) else first
