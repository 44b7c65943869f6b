"""The least loaded replica as of the latest report: joining the shortest queue with stale signals.

Gateways scrape their servers' metrics now and then; between two reports everybody runs to the replica that looked best
at the last (the herd of M. Mitzenmacher, How Useful Is Old Information?, IEEE TPDS 11(1), 2000).
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simkit.cluster.routers.least_outstanding import Load, least, load_code
from simkit.cluster.routers.router import LEAST_REPORTED, Rule, View


class LeastReported(BaseModel):
    """Loads are reported at every multiple of `age_s`; ties are broken at random."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    age_s: float = Field(default=0.1, gt=0, le=1e6, allow_inf_nan=False, description="time between two reports")
    load: Load = "requests"

    def router(self, rng: np.random.Generator) -> "Reader":
        """A router that draws from `rng`, once a request."""
        return Reader(rng, self.load, max(1, round(self.age_s * 1e9)))


class Reader:
    """Reads the report.

    It has what was true at the time of the report from the requests it has seen leave and end since, so it asks at the
    first request after the report is due. Replicas that came since count as idle.
    """

    def __init__(self, rng: np.random.Generator, load: Load, age_ns: int) -> None:
        self._rng = rng
        self._load = load
        self._age_ns = age_ns
        self.rule = Rule(LEAST_REPORTED, load_code(load), age_ns=age_ns)
        self.reported_ns = 0
        self._report: dict[int, int] = {}

    def report(self, now_ns: int, loads: dict[int, int]) -> None:
        """Take the loads at `now_ns`, a multiple of the age, by the replicas' numbers."""
        self.reported_ns = now_ns
        self._report = loads

    @property
    def age_ns(self) -> int:
        """How often it wants a report."""
        return self._age_ns

    @property
    def load(self) -> Load:
        """What is to be reported."""
        return self._load

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request."""
        known = [self._report.get(fleet.number(replica), 0) for replica in range(len(fleet))]
        return least(known, float(self._rng.random()))
