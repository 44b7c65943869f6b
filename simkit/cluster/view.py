"""What routers see: the replicas that can take a request at this moment, and the request."""

from collections.abc import Sequence

import numpy as np
import simpy

from simkit.cluster.roster import Life
from simkit.cluster.station import Station
from simkit.engine.state import I64
from simkit.workloads.workload import Workload

NOTHING: I64 = np.zeros(0, dtype=np.int64)


class FleetView:
    """`simkit.cluster.routers.View` over replicas on the clock."""

    def __init__(self, clock: simpy.Environment, workload: Workload, expected_tokens: list[int]) -> None:
        """`expected_tokens` [n] is each request's prompt and the answer that is expected of it."""
        self._clock = clock
        self._workload = workload
        self._expected = expected_tokens
        self._lives: Sequence[Life] = ()

    def over(self, lives: Sequence[Life]) -> "FleetView":
        """The same view of other replicas."""
        self._lives = lives
        return self

    @property
    def now_ns(self) -> int:
        """The time on the fleet's clock."""
        return int(self._clock.now)

    def __len__(self) -> int:
        return len(self._lives)

    def number(self, replica: int) -> int:
        """The replica's number in the whole fleet."""
        return self._lives[replica].number

    def outstanding(self, replica: int) -> int:
        """Requests sent to a replica and not answered yet."""
        return self._station(replica).outstanding

    def outstanding_tokens(self, replica: int) -> int:
        """The prompts of these and the answers expected of them."""
        return self._station(replica).outstanding_tokens

    def running_and_waiting(self, replica: int) -> tuple[int, int]:
        """Requests in the replica's batch and in its queue."""
        return self._station(replica).running_and_waiting()

    def kv_used(self, replica: int) -> float:
        """Share of the replica's KV blocks that requests hold."""
        return self._station(replica).kv_used()

    def kv_tokens(self, replica: int) -> int:
        """Tokens that the replica's KV cache holds."""
        spec = self._lives[replica].member.spec
        return spec.kv_tokens - spec.limits.block_size

    def pool(self, replica: int) -> str:
        """The pool that the replica belongs to."""
        return self._lives[replica].member.pool

    def cached_tokens(self, replica: int, request: int) -> int:
        """Leading prompt tokens of a request in the replica's prefix cache."""
        return self._station(replica).cached_tokens(request)

    def prompt_tokens(self, request: int) -> int:
        """Length of a request's prompt."""
        return int(self._workload.prompt_tokens[request])

    def expected_tokens(self, request: int) -> int:
        """Its prompt and the answer expected of it."""
        return self._expected[request]

    def session(self, request: int) -> str:
        """The session that a request belongs to; empty if the workload names none."""
        return "" if self._workload.session_id is None else self._workload.session_id[request]

    def content(self, request: int) -> I64:
        """Ids of the request's leading blocks."""
        prefixes = self._workload.prefixes
        if prefixes is None:
            return NOTHING
        return prefixes.ids[prefixes.start[request] : prefixes.start[request + 1]]

    def content_tokens(self) -> int:
        """Tokens that an id covers; where there are none, of a block of a common size."""
        return 16 if self._workload.prefixes is None else self._workload.prefixes.block_tokens

    def _station(self, replica: int) -> Station:
        station = self._lives[replica].station
        assert station is not None, "only replicas that are ready are shown"
        return station
