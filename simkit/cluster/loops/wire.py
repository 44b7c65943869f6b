"""Links in the compiled loop, transfer for transfer as simkit.cluster.link has them: equal shares by virtual time."""

import math

from simkit.cluster.loops.apart_state import (
    BY_RECEIVER,
    BY_SENDER,
    LANDING_TAIL,
    NOW_NS,
    TURN,
    Yard,
)
from simkit.compiled import inlined
from simkit.engine.state import NEVER


@inlined
def link_between(yard: Yard, source: int, target: int) -> int:
    """The number of the link from one replica to another."""
    if yard.shared_by == BY_SENDER:
        return source
    return target if yard.shared_by == BY_RECEIVER else 0


@inlined
def begin_transfer(yard: Yard, k: int, request: int, size: int) -> None:
    """Start to move `size` bytes of a request's over link k."""
    link = yard.links[k]
    link.used = 1
    catch_up(yard, k)
    link.bytes += size
    push(yard, k, link.served + size, request)
    set_alarm(yard, k)


@inlined
def end_transfer(yard: Yard, k: int) -> None:
    """The next end of link k is now: it lands after the latency."""
    link = yard.links[k]
    link.due_ns = NEVER
    catch_up(yard, k)
    link.served = max(link.served, yard.ending[k, 0])
    request = pop(yard, k)
    if link.active == 0:
        link.served = 0.0
    at = yard.at
    at[TURN] += 1
    landing = yard.landing[at[LANDING_TAIL]]
    landing.request = request
    landing.due_ns = at[NOW_NS] + yard.latency_ns
    landing.due_turn = at[TURN]
    at[LANDING_TAIL] += 1
    set_alarm(yard, k)


@inlined
def catch_up(yard: Yard, k: int) -> None:
    """Bring what link k has served up to now."""
    link = yard.links[k]
    now = yard.at[NOW_NS]
    if link.active > 0:
        link.served += (now - link.since_ns) * yard.bytes_per_ns / link.active
        link.busy_ns += now - link.since_ns
    link.since_ns = now


@inlined
def set_alarm(yard: Yard, k: int) -> None:
    """Put the next end of link k on the clock."""
    link = yard.links[k]
    link.due_ns = NEVER
    if link.active > 0:
        left_ns = (yard.ending[k, 0] - link.served) * link.active / yard.bytes_per_ns
        yard.at[TURN] += 1
        link.due_turn = yard.at[TURN]
        link.due_ns = yard.at[NOW_NS] + max(0, math.ceil(left_ns - 1e-6))


@inlined
def push(yard: Yard, k: int, end: float, request: int) -> None:
    """Put a transfer that ends at `end` bytes into the heap of link k."""
    ending, number, cargo = yard.ending[k], yard.number[k], yard.cargo[k]
    place = yard.links[k].active
    yard.links[k].active += 1
    # all of them are numbered in the order in which they begin: by the turn that the alarm is about to take
    mine = yard.at[TURN]
    while place > 0:
        above = (place - 1) // 2
        if not (end < ending[above] or (end == ending[above] and mine < number[above])):
            break
        ending[place], number[place], cargo[place] = ending[above], number[above], cargo[above]
        place = above
    ending[place], number[place], cargo[place] = end, mine, request


@inlined
def pop(yard: Yard, k: int) -> int:
    """Take the transfer that ends first out of the heap of link k."""
    ending, number, cargo = yard.ending[k], yard.number[k], yard.cargo[k]
    first = cargo[0]
    yard.links[k].active -= 1
    count = yard.links[k].active
    end, mine, request = ending[count], number[count], cargo[count]
    place = 0
    while True:
        below = 2 * place + 1
        if below >= count:
            break
        other = below + 1
        if other < count and (
            ending[other] < ending[below] or (ending[other] == ending[below] and number[other] < number[below])
        ):
            below = other
        if not (ending[below] < end or (ending[below] == end and number[below] < mine)):
            break
        ending[place], number[place], cargo[place] = ending[below], number[below], cargo[below]
        place = below
    ending[place], number[place], cargo[place] = end, mine, request
    return int(first)
