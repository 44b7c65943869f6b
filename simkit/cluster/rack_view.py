"""What routers see of engines that run in one rack."""

from collections.abc import Sequence

import numpy as np
import simpy

from simkit.cluster.loops.until_end import cached_blocks
from simkit.cluster.offers import Offered
from simkit.cluster.rack import Rack, replica_of
from simkit.cluster.roster import Member
from simkit.cluster.view import FleetView
from simkit.engine.state import FREE_BLOCKS, I64, NEXT_ARRIVAL, ROWS, RUNNING_COUNT, WAITING_COUNT
from simkit.workloads.workload import Workload


class RackView:
    """`simkit.cluster.routers.View` over a rack whose replicas have caught up to now."""

    def __init__(self, workload: Workload, members: Sequence[Member], offers: Sequence[Offered]) -> None:
        """`members` and `offers` are the rack's, replica by replica."""
        self._members = members
        self._offers = offers
        asked = offers[0].requests
        # of a request it tells what it tells on the clock
        self._asked = FleetView(
            simpy.Environment(), workload, (asked["prompt"].astype(np.int64) + asked["predicted"]).tolist()
        )

    def at(self, rack: Rack, now_ns: int) -> "RackView":
        """The same view of the rack as it is now."""
        self._rack, self._now_ns = rack, now_ns
        return self

    @property
    def now_ns(self) -> int:
        """The time on the fleet's clock."""
        return self._now_ns

    def __len__(self) -> int:
        return len(self._members)

    def number(self, replica: int) -> int:
        """The replica's number in the whole fleet."""
        return replica

    def outstanding(self, replica: int) -> int:
        """Requests sent to a replica and not answered yet."""
        return int(self._rack.counters["requests"][replica])

    def outstanding_tokens(self, replica: int) -> int:
        """The prompts of these and the answers expected of them."""
        return int(self._rack.counters["tokens"][replica])

    def running_and_waiting(self, replica: int) -> tuple[int, int]:
        """Requests in the replica's batch and in its queue."""
        at = self._rack.at[replica]
        return int(at[RUNNING_COUNT]), int(at[WAITING_COUNT] + at[ROWS] - at[NEXT_ARRIVAL])

    def kv_used(self, replica: int) -> float:
        """Share of the replica's KV blocks that requests hold."""
        blocks = int(self._rack.shape["blocks"][replica]) - 1
        return 1.0 - int(self._rack.counts[replica, FREE_BLOCKS]) / blocks

    def kv_tokens(self, replica: int) -> int:
        """Tokens that the replica's KV cache holds."""
        spec = self._members[replica].spec
        return (spec.num_blocks - 1) * spec.limits.block_size

    def pool(self, replica: int) -> str:
        """The pool that the replica belongs to."""
        return self._members[replica].pool

    def cached_tokens(self, replica: int, request: int) -> int:
        """Leading prompt tokens of a request in the replica's prefix cache."""
        offer = self._offers[replica]
        asked, size = offer.requests[request], offer.limits.block_size
        named = min(int(asked["content_blocks"]), (int(asked["prompt"]) - 1) // size)
        if named == 0:
            return 0
        row = int(self._rack.at[replica, ROWS])  # of the next request it is given; there is room for it
        self._rack.requests[replica, row] = asked
        requests = self._rack.requests[replica].view(np.recarray)
        whole = replica_of(self._rack, replica, offer.limits)._replace(requests=requests)
        return int(cached_blocks(whole, row, named)) * size

    def prompt_tokens(self, request: int) -> int:
        """Length of a request's prompt."""
        return self._asked.prompt_tokens(request)

    def expected_tokens(self, request: int) -> int:
        """Its prompt and the answer expected of it."""
        return self._asked.expected_tokens(request)

    def session(self, request: int) -> str:
        """The session that a request belongs to; empty if the workload names none."""
        return self._asked.session(request)

    def content(self, request: int) -> I64:
        """Ids of the request's leading blocks."""
        return self._asked.content(request)

    def content_tokens(self) -> int:
        """Tokens that an id covers."""
        return self._asked.content_tokens()
