"""One request's way through a fleet in which KV is moved."""

from dataclasses import dataclass, field

from simkit.cluster.job import Job
from simkit.cluster.link import Transfer
from simkit.cluster.roster import Life


@dataclass(slots=True, eq=False)
class Trip:
    """One request underway, from the door to the replica that puts out its tokens; times in ns."""

    decode: Job  # the one that puts out the tokens
    fits: bool = True
    prefill: Job | None = None  # None: the same replica computes the prompt
    source: Life | None = None
    target: Life | None = None
    prefilled_ns: int = 0
    departs_ns: int = 0  # its KV can leave: it is there, and there is room where it goes
    moved_ns: int = 0  # time in which it only waited for KV on links, up to now
    missing_blocks: int = 0  # to be moved from one replica to the other
    announced_blocks: int = 0  # of those, given to a link
    pieces: int = 0  # of them on a link now
    transfers: list[Transfer] = field(default_factory=list)  # to this target, those that are through included
    leg: int = 0  # counts the targets
    reads: list[Transfer] = field(default_factory=list)  # of tiers, by the replica that is to compute the prompt
    reading: int = 0  # of them not there yet
    shared_reads: bool = False  # some out of a store that replicas share
    taken_up: int = 0  # times that its KV was sent to another decode replica, after the one before was lost

    @property
    def computes(self) -> Life | None:
        """The replica that is to compute the prompt; None: it is not chosen yet."""
        return self.target if self.prefill is None else self.source

    @property
    def handed_over(self) -> bool:
        """Whether blocks are held at a decode replica for KV of another."""
        return self.prefill is not None and self.target is not None
