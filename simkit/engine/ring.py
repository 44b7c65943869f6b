"""Batches in flight: a ring of rows, the oldest first, as many as the engine plans ahead.

vLLM's EngineCore.step_with_batch_queue: a batch for each stage of the pipeline, each request's next token in one of
them; one batch more where a step is planned before the token of the one in flight is known.
"""

from simkit.compiled import inlined
from simkit.engine.state import IN_FLIGHT, OLDEST, Limits, Replica


def rows_of(limits: Limits) -> int:
    """How long the ring is."""
    return max(2, limits.pipeline_depth)


@inlined
def ring_row(r: Replica, place: int) -> int:
    """The row of the batch so many places behind the oldest in flight; -1: of the one committed last."""
    rows = max(2, r.limits.pipeline_depth)
    return int((r.at[OLDEST] + rows + place) % rows)


@inlined
def in_flight(r: Replica, request: int) -> bool:
    """Whether some of a request is in a batch in flight."""
    for place in range(r.at[IN_FLIGHT]):
        row = ring_row(r, place)
        for k in range(r.batches[row].length):
            if r.entries[row, k].request == request:
                return True
    return False


@inlined
def asynchronous(r: Replica) -> bool:
    """Whether a step is planned before the tokens of those in flight are known."""
    return bool(r.limits.pipeline_depth > r.limits.stages)
