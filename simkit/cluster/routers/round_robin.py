"""Each replica in turn."""

import numpy as np

from simkit.engine.state import I64
from simkit.workloads.workload import Workload


class RoundRobin:
    """Request i goes to replica i modulo their number."""

    def __init__(self, rng: np.random.Generator) -> None:
        """It draws nothing from `rng`."""

    def shares(self, workload: Workload, replicas: int) -> I64:
        """[n] the replica of each request."""
        return np.arange(len(workload), dtype=np.int64) % replicas
