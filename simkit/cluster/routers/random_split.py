"""A replica at random: it splits Poisson arrivals into independent Poisson streams."""

import numpy as np

from simkit.engine.state import I64
from simkit.workloads.workload import Workload


class RandomSplit:
    """Each request goes to each replica with the same probability, whatever happened before."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def shares(self, workload: Workload, replicas: int) -> I64:
        """[n] the replica of each request."""
        return self._rng.integers(0, replicas, len(workload))
