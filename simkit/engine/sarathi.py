"""Sarathi-Serve: decodes first, and what they leave of a step's token budget goes to one chunk of prompt after another.

Agrawal et al., OSDI 2024, algorithm 3, and sarathi-serve's sarathi_scheduler.py: all decodes are packed, then prompts
under way, then new requests, so that a prompt never stalls a decode. Who is admitted gets blocks for its whole prompt.
vLLM V1's chunked prefill is a descendant; it serves in order of admission and takes a prompt's blocks chunk by chunk.
"""

from simkit.compiled import inlined
from simkit.engine.actions import has_room
from simkit.engine.shares import cached_prefix, continue_prompts, serve_decodes, start
from simkit.engine.state import PREEMPTED_NOW, RUNNING_COUNT, WAITING_COUNT, Replica
from simkit.engine.waiting import head


@inlined
def schedule(r: Replica, row: int) -> None:
    """Decodes, prompts under way, new requests.

    A prompt under way is the last of `running`: it took the whole budget when it was cut, so nobody came after it. The
    batch is therefore in the order of `running`, as the ledger needs it.
    """
    budget = serve_decodes(r, row, r.limits.max_num_batched_tokens)
    budget = continue_prompts(r, row, budget)
    # who was preempted stands at the head of the queue, and blocks were what it lacked
    if r.at[PREEMPTED_NOW] == 0:
        _admit(r, row, budget)


@inlined
def _admit(r: Replica, row: int, budget: int) -> None:
    while budget > 0 and r.at[WAITING_COUNT] > 0 and r.at[RUNNING_COUNT] < r.limits.max_running:
        request = head(r)
        known = int(r.progress[request].known)
        hits, idle = cached_prefix(r, request)
        due = known - hits * r.limits.block_size
        if not has_room(r, known, hits, idle) or (due > budget and not r.limits.chunked_prefill):
            return
        share = min(due, budget)
        start(r, row, request, hits, share, known)
        budget -= share
