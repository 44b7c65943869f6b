"""A batch on its way through the pipeline's stages: each takes one batch at a time, in order."""

from simkit.compiled import inlined
from simkit.engine.clock import round_ns, sampling_ns
from simkit.engine.state import DEVICE_FREE, PLACES, Replica
from simkit.models.steptables import StepTables, drafting_ns


@inlined
def leaves_first_stage(r: Replica) -> int:
    """When the first stage is free for the next batch, ns."""
    return int(r.at[PLACES])


@inlined
def pass_stages(r: Replica, tables: StepTables, row: int, start: int, device: int) -> int:
    """Send a batch through all stages from `start` on, when the first is free; returns the end of the last, ns.

    `device` ns are the stages' times together: what depends on the number of tokens as the tables have it for each
    stage, attention by the stage's layers, sampling and a draft's passes on the last. A stage hands a batch on when it
    is done with it, whether the next one is free or not.
    """
    at = r.at
    tokens = 0
    rows = 0
    for k in range(r.batches[row].length):
        tokens += int(r.entries[row, k].tokens)
        rows += int(r.entries[row, k].samples)
    last = sampling_ns(tables, rows)
    if tokens > r.batches[row].length:  # checks drafts, or has prompts
        last += drafting_ns(tables, r.batches[row].length)
    attention = device - tables.linear_ns[tokens] - last
    clock = start
    left = device
    for stage in range(r.limits.stages - 1):
        own = round_ns(tables.stage_linear_ns[stage, tokens] + tables.stage_attention[stage] * max(attention, 0.0))
        clock = max(clock, at[PLACES + stage]) + own
        at[PLACES + stage] = clock
        left -= own
    return int(max(clock, at[DEVICE_FREE]) + left)
