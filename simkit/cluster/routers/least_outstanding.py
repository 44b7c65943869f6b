"""The replica with the fewest unanswered requests: join the shortest queue."""

import numpy as np

from simkit.cluster.routers.router import View


class LeastOutstanding:
    """Looks at every replica; of those with equally few, one at random, so that an idle fleet fills evenly."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request."""
        load = [fleet.outstanding(replica) for replica in range(len(fleet))]
        least = min(load)
        shortest = [replica for replica, outstanding in enumerate(load) if outstanding == least]
        return shortest[int(self._rng.integers(len(shortest)))] if len(shortest) > 1 else shortest[0]
