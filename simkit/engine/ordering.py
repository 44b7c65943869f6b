"""Who goes first, where it is not first come, first served.

| ordering | most urgent is | source |
|---|---|---|
| priority | the smallest priority | vLLM 0.32 request_queue.py |
| sjf | the smallest predicted output | shortest job first |
| srpt | the smallest predicted output left | shortest remaining processing time |
| edf | the earliest deadline | earliest deadline first |
| fair | whose tenant has been served least, by a virtual token counter | Sheng et al., OSDI 2024 |
| mlfq | the lowest level of a multi-level feedback queue that long prompts skip into | FastServe, Wu et al., 2023 |
"""

import math

from simkit.compiled import inlined
from simkit.engine.state import DEADLINE, FAIR, FEEDBACK, PRIORITY, REMAINING, SHORTEST, Replica

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0  # of the virtual token counter (Sheng et al., section 3)
FIRST_QUANTUM_TOKENS = 256.0  # served on the feedback queue's first level; each next level has twice as many


@inlined
def urgency(r: Replica, request: int) -> float:
    """The smaller, the sooner."""
    ordering = r.limits.ordering
    asked = r.requests[request]
    if ordering == PRIORITY:
        return float(asked.priority)
    if ordering == SHORTEST:
        return float(asked.predicted)
    if ordering == DEADLINE:
        return float(asked.deadline_ns)
    if ordering == FAIR:
        return float(r.tenants[asked.tenant].service)
    if ordering == REMAINING:
        generated = r.progress[request].known - asked.prompt
        return float(max(asked.predicted - generated, 0))
    if ordering == FEEDBACK:
        return math.floor(math.log2(1.0 + float(r.progress[request].known) / FIRST_QUANTUM_TOKENS))
    return 0.0


@inlined
def more_urgent(r: Replica, a: int, b: int) -> bool:
    """Whether `a` goes before `b`; of equals the one that came first (rows are in order of arrival)."""
    ua, ub = urgency(r, a), urgency(r, b)
    return ua < ub or (ua == ub and a < b)


@inlined
def serve_input(r: Replica, request: int) -> None:
    """Charge a tenant for the prompt of a request that is admitted for the first time."""
    tenant = r.requests[request].tenant
    r.tenants[tenant].service += INPUT_WEIGHT * r.requests[request].prompt


@inlined
def serve_output(r: Replica, request: int) -> None:
    """Charge a tenant for an output token."""
    r.tenants[r.requests[request].tenant].service += OUTPUT_WEIGHT


@inlined
def lift(r: Replica, tenant: int) -> None:
    """A tenant that comes back to the queue gets no credit for the time it was away (Sheng et al., algorithm 2)."""
    if r.tenants[tenant].queued > 0:
        return
    least = math.inf
    for other in range(len(r.tenants)):
        if r.tenants[other].queued > 0:
            least = min(least, r.tenants[other].service)
    if least < math.inf:
        r.tenants[tenant].service = max(r.tenants[tenant].service, least)
