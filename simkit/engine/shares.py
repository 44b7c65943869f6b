"""What the disciplines beside vLLM V1's have in common: who is due what, and serving prompts and decodes apart.

A running request that is due one token decodes; one that is due more is in the middle of its prompt. (The last token of
a prompt that was cut counts as a decode: it costs the same.)
"""

from simkit.compiled import inlined
from simkit.engine.actions import admit, choose_victim, give, grow, preempt, reserve
from simkit.engine.prefix import longest_hit
from simkit.engine.state import RUNNING_COUNT, Replica


@inlined
def last_token(r: Replica, request: int) -> int:
    """Tokens of a request, prompt included, when it has produced all that it asked for."""
    return int(min(r.progress[request].asked_until, r.limits.max_model_len))


@inlined
def due_tokens(r: Replica, request: int) -> int:
    """Tokens that a running request can be given now; 0 if the last it asked for is being computed."""
    progress = r.progress[request]
    if progress.placeholders > 0 and progress.computed + 2 - progress.placeholders >= last_token(r, request):
        return 0
    due = progress.known + progress.placeholders - progress.computed
    return int(max(min(due, r.limits.max_model_len - progress.computed - 1), 0))


@inlined
def cached_prefix(r: Replica, request: int) -> tuple[int, int]:
    """How many leading blocks of a waiting request are cached, and how many of these are free."""
    if r.limits.prefix_caching:
        return longest_hit(r, request)
    return 0, 0


@inlined
def whole_prompt(r: Replica, due: int, budget: int, first: bool) -> int:
    """Tokens of a waiting prompt to compute now where prompts are not cut: all, or 0 for it to wait.

    Only the first prompt of a step is cut, if the step cannot hold it and chunked prefill is not off: systems without
    chunked prefill refuse such a prompt, or have no limit on the tokens of a step.
    """
    if due <= budget:
        return due
    return budget if first and r.limits.chunked_prefill else 0


@inlined
def start(r: Replica, row: int, request: int, hits: int, share: int, room: int) -> None:
    """Admit the head of the queue, with blocks for its first `room` tokens, and give it `share` tokens of the step."""
    before = hits * r.limits.block_size
    admit(r, request, hits, before + share)
    reserve(r, request, room)
    if share > 0:
        give(r, row, request, share, before)


@inlined
def continue_prompts(r: Replica, row: int, budget: int) -> int:
    """Give those in the middle of their prompt what is left of it, in order of admission; returns the budget left."""
    for i in range(r.at[RUNNING_COUNT]):
        request = r.running[i]
        due = due_tokens(r, request)
        if due <= 1 or budget == 0 or (due > budget and not r.limits.chunked_prefill):
            continue
        share = min(due, budget)
        computed = int(r.progress[request].computed)
        if grow(r, request, computed + share):
            give(r, row, request, share, computed)
            budget -= share
    return budget


@inlined
def serve_decodes(r: Replica, row: int, budget: int) -> int:
    """Give those that decode a token each, in order of admission; returns the budget left.

    Where a block is missing, running requests are preempted until it is there, the latest admitted or least urgent
    first, the one that needs it last.
    """
    at = r.at
    i = 0
    while i < at[RUNNING_COUNT] and budget > 0:
        request = r.running[i]
        computed = int(r.progress[request].computed)
        if due_tokens(r, request) != 1:
            i += 1
            continue
        while not grow(r, request, computed + 1):
            victim = choose_victim(r)
            refund, place = preempt(r, row, victim)
            budget += refund
            if place < i:
                i -= 1
            if victim == request:
                return budget
        give(r, row, request, 1, computed)
        budget -= 1
        i += 1
    return budget
