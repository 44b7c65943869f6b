"""Coming back from the host: what was swapped out by `preempt` keeps what it had computed."""

from simkit.compiled import inlined
from simkit.engine.actions import give, grow, run_again
from simkit.engine.state import COPIED_BLOCKS, PREEMPTED, Replica
from simkit.engine.waiting import dequeue


@inlined
def is_swapped_out(r: Replica, request: int) -> bool:
    """Whether a waiting request has its KV on the host."""
    return bool(r.progress[request].status == PREEMPTED and r.progress[request].computed > 0)


@inlined
def swap_in(r: Replica, row: int, request: int, tokens: int) -> None:
    """Move the head of the queue back to `running`, its KV to the device, and give it `tokens` tokens of this step."""
    before = int(r.progress[request].computed)
    size = r.limits.block_size
    r.at[COPIED_BLOCKS] += (before + size - 1) // size
    dequeue(r)
    run_again(r, request)
    grow(r, request, before + tokens)
    give(r, row, request, tokens, before)
