"""The queue of requests that wait for admission: first come first served, or a heap by priority."""

from simkit.compiled import inlined
from simkit.engine.state import PREEMPTED, WAITING, WAITING_COUNT, WAITING_HEAD, WAITING_TAIL, Replica


@inlined
def more_urgent(r: Replica, a: int, b: int) -> bool:
    """Whether `a` goes before `b`: by priority, then by arrival (rows are in order of arrival)."""
    pa = r.requests[a].priority
    pb = r.requests[b].priority
    return pa < pb or (pa == pb and a < b)


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
    """Let a request wait: a new one at the end, a preempted one in front; priority knows no front."""
    at = r.at
    at[WAITING_COUNT] += 1
    if r.limits.priority_policy:
        r.waiting[at[WAITING_TAIL]] = request
        at[WAITING_TAIL] += 1
        _sift_up(r, at[WAITING_TAIL] - 1)
    elif to_front:
        # there is room: whoever returns to the front was taken from there
        at[WAITING_HEAD] -= 1
        r.waiting[at[WAITING_HEAD]] = request
    else:
        r.waiting[at[WAITING_TAIL]] = request
        at[WAITING_TAIL] += 1


@inlined
def _drop_head(r: Replica) -> None:
    at = r.at
    if r.limits.priority_policy:
        at[WAITING_TAIL] -= 1
        r.waiting[0] = r.waiting[at[WAITING_TAIL]]
        _sift_down(r, at[WAITING_TAIL])
    else:
        at[WAITING_HEAD] += 1


@inlined
def head(r: Replica) -> int:
    """The next request to admit; there must be one. Those that ended while they waited are passed over."""
    while True:
        request = r.waiting[0] if r.limits.priority_policy else r.waiting[r.at[WAITING_HEAD]]
        status = r.progress[request].status
        if status in (WAITING, PREEMPTED):
            return int(request)
        _drop_head(r)


@inlined
def dequeue(r: Replica) -> None:
    """Take the head, as `head` gave it, out of the queue."""
    _drop_head(r)
    r.at[WAITING_COUNT] -= 1
