"""What the compiled loop of prefill and decode apart keeps beside the replicas: stations, trips, links, lines.

Replicas are rows [R] of the rack, requests rows [n] of the workload. Whatever happens has a time and, as on SimPy's
clock, a turn: of two things at one time those that are over come first, then the one that was put on the clock first.
"""

from typing import NamedTuple

import numpy as np

from simkit.engine.state import F64, I32, I64, Records

# a replica, as simkit.cluster.kv_station.KvStation knows it
STATION = np.dtype(
    [
        ("prefills", np.int8),  # 1: it computes prompts for others; 0: it puts out answers
        ("usable", np.int64),  # KV blocks
        ("asked_ns", np.int64),  # when it asked to be woken
        ("due_ns", np.int64),  # when that is: not before it asked; NEVER: it sleeps
        ("due_turn", np.int64),
        ("next_ns", np.int64),  # before this none of its requests ends
        ("there_ns", np.int64),  # up to this time all is run, and nothing has changed since
        ("late", np.int64),  # requests that the latest step ends, which has been run and may not be over
        ("late_ns", np.int64),  # when it is over
        ("requests", np.int64),  # given and not answered
        ("tokens", np.int64),  # what these weigh
        ("coming_tokens", np.int64),  # the same of those on their way
        ("holding", np.int64),  # blocks held for requests that come or have come and are not admitted
        ("claimed", np.int64),  # blocks of prompts that it is to compute and keep
        ("kept", np.int64),  # blocks of computed prompts that are still to be fetched
        ("landed", np.int64),  # requests that came with KV and are not admitted
        ("aboard", np.int64),  # requests that may still need blocks
        ("free_node", np.int64),  # the first node that nobody uses
    ]
)

# a request on its way, as simkit.cluster.trip.Trip
TRIP = np.dtype(
    [
        ("prompt", np.int64),  # tokens
        ("weight", np.int64),  # what it weighs where it decodes; where it is prefilled its prompt
        ("prefill_blocks", np.int64),  # KV blocks of all that is computed of it there
        ("decode_blocks", np.int64),
        ("fits", np.int8),
        ("local", np.int8),  # 1: its decode replica computes the prompt too
        ("status", np.int8),  # simkit.metrics.result.Status
        ("source", np.int64),  # replicas; -1: none yet
        ("target", np.int64),
        ("prefill_row", np.int64),  # rows there; -1: none yet
        ("decode_row", np.int64),
        ("turned_away", np.int64),  # rows that the replica had which it was too long for; -1: it was not
        ("prefill_sent_ns", np.int64),
        ("sent_ns", np.int64),  # to the replica that answers; -1: not yet
        ("prefilled_ns", np.int64),
        ("departs_ns", np.int64),
        ("moved_ns", np.int64),
        ("over_ns", np.int64),
        ("blocks", np.int64),  # held for its KV where it decodes
        ("cached", np.int64),  # of these, found there
        ("lacking", np.int64),  # blocks that it may still need there, beside those held
        ("held_node", np.int64),  # the first of its blocks that are held there; 0: none are
        ("kept_node", np.int64),  # and of those kept where it was prefilled
    ]
)

# one link, as simkit.cluster.link.Link
LINK = np.dtype(
    [
        ("used", np.int8),
        ("bytes", np.int64),
        ("busy_ns", np.int64),
        ("since_ns", np.int64),
        ("served", np.float64),  # bytes
        ("active", np.int64),  # transfers under way
        ("due_ns", np.int64),  # the next end; NEVER: there is none
        ("due_turn", np.int64),
    ]
)

# of a transfer that has left its link, in order of time
LANDING = np.dtype([("request", np.int64), ("due_ns", np.int64), ("due_turn", np.int64)])

NODE = np.dtype([("block", np.int32), ("after", np.int32)])  # a block that a request has, and the next node; 0: none

# places in Yard.at
(
    NOW_NS,
    TURN,  # the last one given
    ARRIVALS,  # requests that have come
    ARRIVAL_NS,  # when the next comes
    ARRIVAL_TURN,
    OVER,  # requests answered or turned away
    WAITING_HEAD,  # of the line at the door: who is first, and one past the last
    WAITING_TAIL,
    READY_HEAD,  # of the line for decode replicas
    READY_TAIL,
    LANDING_HEAD,  # of transfers that have left their links
    LANDING_TAIL,
    THERE_HEAD,  # of those that are there, and are told of next
    THERE_TAIL,
    OWED_BYTES,
    MOST_KEPT,
    ACT,  # what simkit.cluster.loops.apart_station.visit is asked to do
    ABOUT,  # for which request
    NUMBER,  # and with how many blocks, or in which row
    ROLE,  # whose loads are asked for: STATION.prefills
    PLACES,
) = range(21)

# which transfers meet on a link
BY_SENDER, BY_RECEIVER, BY_ALL = range(3)


class Yard(NamedTuple):
    """All of it; the arrays are changed in place."""

    stations: Records  # STATION [R]
    trips: Records  # TRIP [n]
    links: Records  # LINK [R]
    ending: F64  # [R, n] heaps of transfers under way: the bytes at which each ends,
    number: I64  # [R, n] in which order they began,
    cargo: I64  # [R, n] and whose they are
    late: I32  # [R, max_running] rows that the latest step ends
    out: I64  # [R, 3] simkit.cluster.loops.until_end's
    landed: I64  # [R, n] requests, in order
    aboard: I64  # [R, n] requests
    nodes: Records  # NODE [R, blocks]
    waiting: I64  # [n] requests at the door
    ready: I64  # [n] requests that wait for a decode replica
    landing: Records  # LANDING [n]
    there: Records  # LANDING [n]
    told: I64  # [max_running] requests that are told of now
    order: I64  # [R] replicas, the least loaded first
    loads: I64  # [R]
    scratch: I32  # [most blocks of a prompt]
    at: I64
    bytes_per_ns: float  # of a link
    latency_ns: int
    block_bytes: int
    block_tokens: int
    shared_by: int
    shares_content: bool
