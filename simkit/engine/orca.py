"""Orca: a batch is put together anew at each iteration; who is admitted has memory for all it may ever need.

Yu et al., OSDI 2022, algorithm 1: first come, first served; whoever was selected before is selected again; a new
request enters if there is a place and `max_tokens` slots can be reserved for it. Prompts are computed whole, beside
decodes (selective batching). Here the slots are blocks for prompt + max_tokens.
"""

from simkit.compiled import inlined
from simkit.engine.actions import give, grow, has_room
from simkit.engine.shares import cached_prefix, due_tokens, last_token, start, whole_prompt
from simkit.engine.state import RUNNING_COUNT, WAITING_COUNT, Replica
from simkit.engine.waiting import head


@inlined
def schedule(r: Replica, row: int) -> None:
    """Serve everyone who runs, then admit."""
    budget, prompt_in_step = _serve_running(r, row, r.limits.max_num_batched_tokens)
    _admit(r, row, budget, not prompt_in_step)


@inlined
def _serve_running(r: Replica, row: int, budget: int) -> tuple[int, bool]:
    """Give all running requests what they are due; returns the budget left and whether a prompt was among it."""
    prompt_in_step = False
    for i in range(r.at[RUNNING_COUNT]):
        request = r.running[i]
        share = min(due_tokens(r, request), budget)
        if share == 0:
            continue
        computed = int(r.progress[request].computed)
        grow(r, request, computed + share)  # out of its reservation: it cannot fail
        give(r, row, request, share, computed)
        budget -= share
        prompt_in_step = prompt_in_step or share > 1
    return budget, prompt_in_step


@inlined
def _admit(r: Replica, row: int, budget: int, first: bool) -> None:
    while budget > 0 and r.at[WAITING_COUNT] > 0 and r.at[RUNNING_COUNT] < r.limits.max_running:
        request = head(r)
        hits, idle = cached_prefix(r, request)
        due = int(r.progress[request].known) - hits * r.limits.block_size
        share = whole_prompt(r, due, budget, first)
        room = last_token(r, request)
        if share == 0 or not has_room(r, room, hits, idle):
            return
        start(r, row, request, hits, share, room)
        budget -= share
        first = False
