"""How far a replica can run before anybody outside can notice."""

from simkit.compiled import inlined
from simkit.engine.state import (
    FCFS,
    IN_FLIGHT,
    NEXT_ARRIVAL,
    NOW,
    OLDEST,
    ROWS,
    RUNNING_COUNT,
    WAITING_COUNT,
    WAITING_HEAD,
    WAITING_TAIL,
    Replica,
)

MANY_STEPS = 1 << 31
LONG_QUEUE = 64  # with more requests in the queue a look at all of them costs more than the step that it might save


@inlined
def earliest_end(r: Replica, least_step_ns: int) -> int:
    """A time, ns, before which no request of the replica can end: with every step to come as short as any can be.

    Holds whatever arrives until then. `least_step_ns` is the shortest time in which the device computes a token.
    """
    at = r.at
    steps = MANY_STEPS
    for i in range(at[RUNNING_COUNT]):
        steps = min(steps, steps_left(r, r.running[i]))
    if at[WAITING_COUNT] > LONG_QUEUE:
        steps = 1
    else:
        first = at[WAITING_HEAD] if r.limits.ordering == FCFS else 0
        for i in range(first, at[WAITING_TAIL]):
            steps = min(steps, steps_left(r, r.waiting[i]))
    # a step that ended while the host planned others is committed by the turn that begins after
    begun = max(r.batches[at[OLDEST]].end, at[NOW] + 1) if at[IN_FLIGHT] > 0 else at[NOW] + least_step_ns
    early = begun + (steps - 1) * least_step_ns
    for request in range(at[NEXT_ARRIVAL], at[ROWS]):
        start = max(at[NOW], r.requests[request].arrival_ns)
        early = min(early, start + steps_of(r.limits.speculative_tokens, r.requests[request].output) * least_step_ns)
    return int(early)


@inlined
def steps_left(r: Replica, request: int) -> int:
    """The fewest steps after which a request that has arrived can have all of its tokens, at least 1."""
    progress = r.progress[request]
    return max(1, steps_of(r.limits.speculative_tokens, progress.ends_at - progress.known))


@inlined
def steps_of(speculative_tokens: int, tokens: int) -> int:
    """The fewest steps that yield so many tokens."""
    return int((tokens + speculative_tokens) // (1 + speculative_tokens))
