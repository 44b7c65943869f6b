"""Request-level batching: a batch is formed, runs until its last request is over, and only then the next is formed.

As FasterTransformer behind a batching server does it (Yu et al., "Orca", OSDI 2022, section 2 and figure 3): memory for
prompt and all of the output is set aside when the batch is formed, all prompts are computed, then all decode.

Kinder than the real thing in two ways: a request that is over takes no part in further steps (there it is padding until
the batch is over), and its answer is delivered at once.
"""

from simkit.compiled import inlined
from simkit.engine.actions import has_room
from simkit.engine.shares import cached_prefix, continue_prompts, last_token, serve_decodes, start
from simkit.engine.state import RUNNING_COUNT, WAITING_COUNT, Replica
from simkit.engine.waiting import head


@inlined
def schedule(r: Replica, row: int) -> None:
    """Form a batch if there is none; else go on with its prompts, or, when they are through, with its decodes."""
    if r.at[RUNNING_COUNT] == 0:
        _form_batch(r, row)
        return
    continue_prompts(r, row, r.limits.max_num_batched_tokens)
    if r.batches[row].length == 0:
        serve_decodes(r, row, r.limits.max_num_batched_tokens)


@inlined
def _form_batch(r: Replica, row: int) -> None:
    """Admit from the head of the queue while prompt and output fit; who finds no tokens left now starts later."""
    budget = r.limits.max_num_batched_tokens
    while r.at[WAITING_COUNT] > 0 and r.at[RUNNING_COUNT] < r.limits.max_running:
        request = head(r)
        hits, idle = cached_prefix(r, request)
        room = last_token(r, request)
        if not has_room(r, room, hits, idle):
            return
        due = int(r.progress[request].known) - hits * r.limits.block_size
        share = min(due, budget) if due <= budget or r.limits.chunked_prefill else 0
        start(r, row, request, hits, share, room)
        budget -= share
