"""Running a scenario small enough to be worked by hand: a step lasts 10 ns, so a request's arrival can be a step."""

from dataclasses import dataclass

import numpy as np

from simkit.engine.discipline import engine
from simkit.engine.replica import new_replica
from simkit.engine.state import (
    ABORT,
    NEVER,
    NEXT_ARRIVAL,
    NOW,
    OLDEST,
    REQUEST,
    ROWS,
    UNFINISHED,
    Limits,
    Replica,
    records,
)
from simkit.models.steptables import constant_tables

STEP_NS = 10

LIMITS = Limits(
    max_num_batched_tokens=16,
    max_running=3,
    max_model_len=64,
    block_size=4,
)

Step = list[tuple[int, int, int]]  # (request, tokens, computed before) in batch order


@dataclass(frozen=True)
class Ask:
    """A request; `max_tokens` and `predicted` are its true output where they are left out."""

    step: int
    prompt: int
    output: int
    max_tokens: int | None = None
    priority: int = 0
    predicted: int | None = None
    tenant: int = 0
    deadline_ns: int = NEVER
    content: tuple[int, ...] = ()  # ids of its leading blocks


def play(
    discipline: str, limits: Limits, asks: list[Ask], blocks: int, most_steps: int = 1000
) -> tuple[list[Step], Replica]:
    """The batches that the requests give, and the replica at the end, or after `most_steps` steps."""
    rows = records(len(asks), REQUEST)
    content: list[int] = []
    for i, ask in enumerate(asks):
        asked = ask.output if ask.max_tokens is None else ask.max_tokens
        believed = ask.output if ask.predicted is None else ask.predicted
        known = (STEP_NS * ask.step, ask.prompt, ask.output, asked, ask.priority, believed, ask.tenant, ask.deadline_ns)
        rows[i] = (*known, len(content), len(ask.content))
        content += ask.content
    r = new_replica(limits, rows, np.array(content, dtype=np.int64), records(0, ABORT), blocks + 1)
    tables = constant_tables(limits.max_num_batched_tokens, limits.max_running, step_ns=float(STEP_NS))
    iterate = engine(discipline).iterate
    found: list[Step] = []
    while (r.at[UNFINISHED] or r.at[NEXT_ARRIVAL] < r.at[ROWS]) and len(found) < most_steps:
        if not r.at[UNFINISHED]:
            r.at[NOW] = max(r.at[NOW], rows["arrival_ns"][r.at[NEXT_ARRIVAL]])
        row = int(r.at[OLDEST])
        iterate(r, tables)
        entries = r.entries[row, : r.batches["length"][row]]
        found.append([(int(e.request), int(e.tokens), int(e.before)) for e in entries])
    return found, r


def first_served(found: list[Step]) -> list[int]:
    """Requests in the order in which they first got tokens."""
    return list(dict.fromkeys(request for step in found for request, _, _ in step))
