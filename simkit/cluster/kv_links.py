"""KV on its way from prefill to decode replicas: which bytes go when, when all are there, what is given up."""

from collections.abc import Callable
from functools import partial

import simpy

from simkit.cluster.alarm import Alarm
from simkit.cluster.handover import Disaggregation, HandoverTotals
from simkit.cluster.layerwise import Chunk
from simkit.cluster.roster import Life
from simkit.cluster.topology import Wires
from simkit.cluster.trip import Trip


class KvLinks:
    """The links between the pools, and what each trip has on them. A trip has one target at a time."""

    def __init__(
        self,
        clock: simpy.Environment,
        settings: Disaggregation,
        block_tokens: int,
        block_bytes: int,
        all_there: Callable[[Trip], None],
    ) -> None:
        """`block_bytes` are those of one KV block on all GPUs of a replica; `all_there` is told of a trip's last."""
        self._clock = clock
        self._block_tokens, self._block_bytes = block_tokens, block_bytes
        self._all_there = all_there
        self._wires = Wires(clock, settings.link, settings.shared_by)
        self._owed_bytes = self._given_up_bytes = 0

    def aim(self, trip: Trip, target: Life, blocks: int, missing: int) -> None:
        """Blocks for a trip's KV, `blocks` of which `missing` must come, are held at a decode replica."""
        trip.decode.kv_tokens = blocks * self._block_tokens
        trip.target, trip.missing_blocks = target, missing
        self._owed_bytes += missing * self._block_bytes

    def leave(self, trip: Trip) -> None:
        """All of it is computed and leaves at once."""
        trip.departs_ns = int(self._clock.now)
        trip.announced_blocks = trip.missing_blocks
        trip.pieces = 1
        self._send(trip, trip.leg, trip.missing_blocks * self._block_bytes)

    def leave_by_layer(self, trip: Trip, chunk: Chunk) -> None:
        """What a step computes of it, which is under way: each layer's leaves once it is computed."""
        known = trip.decode.kv_tokens // self._block_tokens
        skipped = known - trip.missing_blocks  # of the leading blocks, which the decode replica has
        ready = min(known, chunk.computed_tokens // self._block_tokens) - skipped - trip.announced_blocks
        if ready <= 0:
            return
        trip.announced_blocks += ready
        whole = ready * self._block_bytes
        last = whole // chunk.layers
        first_layer_ns = chunk.start_ns + (chunk.end_ns - chunk.start_ns) // chunk.layers
        trip.pieces += 2
        Alarm(self._clock, first_layer_ns, partial(self._send, trip, trip.leg, whole - last))
        Alarm(self._clock, chunk.end_ns, partial(self._send, trip, trip.leg, last))

    def is_there(self, trip: Trip) -> bool:
        """Whether all of it has come."""
        return trip.pieces == 0 and trip.announced_blocks == trip.missing_blocks and trip.prefilled_ns > 0

    def break_off(self, trip: Trip) -> None:
        """What is on links goes no further; the trip has no target then."""
        moved = sum(transfer.give_up() for transfer in trip.transfers)
        if trip.handed_over:
            self._given_up_bytes += trip.missing_blocks * self._block_bytes - moved
        trip.target, trip.transfers = None, []
        trip.pieces = trip.announced_blocks = trip.missing_blocks = trip.departs_ns = 0
        trip.leg += 1

    def totals(self, handed_over: int, local: int, taken_up: int, most_kept_blocks: int) -> HandoverTotals:
        """What was moved, beside what others have counted."""
        return HandoverTotals(
            handed_over=handed_over,
            local=local,
            bytes_moved=self._wires.bytes,
            bytes_owed=self._owed_bytes,
            bytes_given_up=self._given_up_bytes,
            taken_up=taken_up,
            link_busy_ns=self._wires.busy_ns,
            links=self._wires.count,
            most_kept_blocks=most_kept_blocks,
        )

    def _send(self, trip: Trip, leg: int, size: int) -> None:
        """Put bytes on the link."""
        if leg != trip.leg:
            return  # it was broken off since
        assert trip.source is not None, "it was prefilled"
        assert trip.target is not None, "there is room"
        if size == 0:
            self._piece_there(trip)
            return
        there = self._wires.between(trip.source.index, trip.target.index).transfer(size)
        trip.transfers.append(there)
        there.callbacks.append(lambda _: self._piece_there(trip))

    def _piece_there(self, trip: Trip) -> None:
        trip.pieces -= 1
        if self.is_there(trip):
            self._all_there(trip)
