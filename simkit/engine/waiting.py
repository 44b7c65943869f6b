"""The queue of requests that wait for admission: first come first served, or by urgency.

By urgency it is a heap, because nobody's urgency changes while it waits; only under `fair` all of a tenant's requests
change with every token it is served, so there the queue is searched.
"""

from simkit.compiled import inlined
from simkit.engine.ordering import lift, more_urgent
from simkit.engine.state import FAIR, FCFS, PREEMPTED, WAITING, WAITING_COUNT, WAITING_HEAD, WAITING_TAIL, Replica


@inlined
def _sift_up(r: Replica, i: int) -> None:
    heap = r.waiting
    while i > 0:
        parent = (i - 1) // 2
        if not more_urgent(r, heap[i], heap[parent]):
            return
        heap[i], heap[parent] = heap[parent], heap[i]
        i = parent


@inlined
def _sift_down(r: Replica, size: int) -> None:
    heap = r.waiting
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            return
        if child + 1 < size and more_urgent(r, heap[child + 1], heap[child]):
            child += 1
        if not more_urgent(r, heap[child], heap[i]):
            return
        heap[i], heap[child] = heap[child], heap[i]
        i = child


@inlined
def enqueue(r: Replica, request: int, to_front: bool) -> None:
    """Let a request wait: a new one at the end, a preempted one in front; urgency knows no front."""
    at = r.at
    at[WAITING_COUNT] += 1
    if r.limits.ordering == FCFS:
        if to_front:
            # there is room: whoever returns to the front was taken from there
            at[WAITING_HEAD] -= 1
            r.waiting[at[WAITING_HEAD]] = request
        else:
            r.waiting[at[WAITING_TAIL]] = request
            at[WAITING_TAIL] += 1
        return
    r.waiting[at[WAITING_TAIL]] = request
    at[WAITING_TAIL] += 1
    if r.limits.ordering == FAIR:
        tenant = r.requests[request].tenant
        lift(r, tenant)
        r.tenants[tenant].queued += 1
    else:
        _sift_up(r, at[WAITING_TAIL] - 1)


@inlined
def _drop_head(r: Replica) -> None:
    at = r.at
    if r.limits.ordering == FCFS:
        at[WAITING_HEAD] += 1
        return
    at[WAITING_TAIL] -= 1
    r.waiting[0] = r.waiting[at[WAITING_TAIL]]
    if r.limits.ordering != FAIR:
        _sift_down(r, at[WAITING_TAIL])


@inlined
def _waits(r: Replica, request: int) -> bool:
    """Whether an entry of the queue still waits: those that ended meanwhile are left in it until they are met."""
    status = r.progress[request].status
    return status in (WAITING, PREEMPTED)


@inlined
def _bring_most_urgent_to_front(r: Replica) -> None:
    best = 0
    for i in range(1, r.at[WAITING_TAIL]):
        if _waits(r, r.waiting[i]) and (
            not _waits(r, r.waiting[best]) or more_urgent(r, r.waiting[i], r.waiting[best])
        ):
            best = i
    r.waiting[0], r.waiting[best] = r.waiting[best], r.waiting[0]


@inlined
def head(r: Replica) -> int:
    """The next request to admit; there must be one."""
    if r.limits.ordering == FAIR:
        _bring_most_urgent_to_front(r)
    while True:
        request = r.waiting[r.at[WAITING_HEAD]] if r.limits.ordering == FCFS else r.waiting[0]
        if _waits(r, request):
            return int(request)
        _drop_head(r)


@inlined
def dequeue(r: Replica) -> None:
    """Take the head, as `head` gave it, out of the queue."""
    if r.limits.ordering == FAIR:
        r.tenants[r.requests[r.waiting[0]].tenant].queued -= 1
    _drop_head(r)
    r.at[WAITING_COUNT] -= 1


@inlined
def can_set_aside(r: Replica, aside: int) -> bool:
    """Whether one more than `aside` requests may leave the queue while a step is planned, to come back after it.

    Not under `fair`, where who comes back counts as new.
    """
    return r.limits.ordering != FAIR and aside < r.limits.max_running


@inlined
def set_aside(r: Replica, aside: int) -> None:
    """Take the head, as `head` gave it, out of the queue until `put_back`, behind `aside` others."""
    # nobody was preempted where somebody may be admitted, so nothing else is there
    r.record.victims[aside] = head(r)
    dequeue(r)


@inlined
def put_back(r: Replica, aside: int) -> None:
    """Let those set aside wait again, in front and in the order that they were in."""
    for k in range(aside):
        enqueue(r, r.record.victims[aside - 1 - k], True)


@inlined
def leave_queue(r: Replica, request: int) -> None:
    """Count out a request that ends while it waits; its entry is passed over when it is met."""
    if r.limits.ordering == FAIR:
        r.tenants[r.requests[request].tenant].queued -= 1
    r.at[WAITING_COUNT] -= 1
