"""vLLM V0: a step is whole prompts, or decodes; prompts go first.

Rules of vLLM 0.6 core/scheduler.py, `_schedule_default`, and of its block manager v2. Who is preempted computes
everything again, or, with `preemption_mode: swap`, waits on the host; while such a request is first in line, nobody is
admitted, and it comes back in a step of decodes that preempted nobody (`_schedule_swapped`).
"""

from simkit.compiled import inlined
from simkit.engine.actions import has_room
from simkit.engine.shares import cached_prefix, continue_prompts, due_tokens, serve_decodes, start, whole_prompt
from simkit.engine.state import PREEMPTED_NOW, RUNNING_COUNT, WAITING_COUNT, Replica
from simkit.engine.swap import is_swapped_out, swap_in
from simkit.engine.waiting import head


@inlined
def schedule(r: Replica, row: int) -> None:
    """Prompts if one can be admitted; decodes if none is."""
    budget = continue_prompts(r, row, r.limits.max_num_batched_tokens)
    _admit_prompts(r, row, budget)
    if r.batches[row].length > 0:
        return
    budget = serve_decodes(r, row, r.limits.max_num_batched_tokens)
    # a preemption says that there is no room to come back to (vLLM 0.6 scheduler, _schedule_default)
    if r.at[PREEMPTED_NOW] == 0:
        _bring_back(r, row, budget)


@inlined
def _admit_prompts(r: Replica, row: int, budget: int) -> None:
    while budget > 0 and r.at[WAITING_COUNT] > 0 and r.at[RUNNING_COUNT] < r.limits.max_running:
        request = head(r)
        if is_swapped_out(r, request):
            return
        known = int(r.progress[request].known)
        hits, idle = cached_prefix(r, request)
        share = whole_prompt(r, known - hits * r.limits.block_size, budget, r.batches[row].length == 0)
        if share == 0 or not has_room(r, known, hits, idle):
            return
        start(r, row, request, hits, share, known)
        budget -= share


@inlined
def _bring_back(r: Replica, row: int, budget: int) -> None:
    while budget > 0 and r.at[WAITING_COUNT] > 0 and r.at[RUNNING_COUNT] < r.limits.max_running:
        request = head(r)
        # one whose token is in flight is due nothing until that has been delivered
        share = min(due_tokens(r, request), budget)
        if not is_swapped_out(r, request) or share == 0 or not has_room(r, int(r.progress[request].known), 0, 0):
            return
        swap_in(r, row, request, share)
        budget -= share
