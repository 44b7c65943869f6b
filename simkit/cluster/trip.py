"""One request's way through a fleet in which KV is moved."""

from dataclasses import dataclass

from simkit.cluster.job import Job
from simkit.cluster.kv_station import KeepingStation, LandingStation


@dataclass(slots=True, eq=False)
class Trip:
    """One request underway; times in ns."""

    decode: Job  # the one that puts out the tokens
    prefill: Job | None  # None: the same replica computes the prompt
    source: KeepingStation | None = None
    target: LandingStation | None = None
    prefilled_ns: int = 0
    departs_ns: int = 0  # its KV can leave: it is computed, and there is room where it goes
    missing_blocks: int = 0  # to be moved
    announced_blocks: int = 0  # of those, given to a link
    pieces: int = 0  # on a link now
