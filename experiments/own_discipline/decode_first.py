"""Decodes never wait: prompts share what answers leave, and at most half a step while anybody answers."""

from simkit.engine.actions import admit, fits, give, grow, preempt
from simkit.engine.shares import cached_prefix, due_tokens
from simkit.engine.state import PREEMPTED_NOW, RUNNING, RUNNING_COUNT, WAITING_COUNT
from simkit.engine.waiting import head

PROMPT_SHARE = 0.5  # of a step's tokens, while somebody answers


def schedule(r, row):
    """Fill the batch in ring row `row`, in the order of `running`."""
    budget = r.limits.max_num_batched_tokens
    decodes = count_decodes(r)
    for_prompts = max(budget - decodes, 0)
    if decodes > 0:
        for_prompts = min(for_prompts, int(PROMPT_SHARE * budget))
    i = 0
    while i < r.at[RUNNING_COUNT]:
        request = r.running[i]
        i += 1
        tokens = due_tokens(r, request)
        if tokens > 1:
            tokens = min(tokens, for_prompts)
            for_prompts -= tokens
        before = r.progress[request].computed
        if 0 < tokens <= budget and grow_or_preempt(r, row, request, before + tokens):
            give(r, row, request, tokens, before)
            budget -= tokens
    # whoever was preempted in this step would come straight back
    while r.at[PREEMPTED_NOW] == 0 and r.at[WAITING_COUNT] > 0 and r.at[RUNNING_COUNT] < r.limits.max_running:
        request = head(r)
        hits, idle = cached_prefix(r, request)
        hit = hits * r.limits.block_size
        tokens = min(r.progress[request].known - hit, for_prompts)
        if tokens == 0 or not fits(r, request, hit + tokens, hits, idle):
            return
        admit(r, request, hits, hit + tokens)
        give(r, row, request, tokens, hit)
        for_prompts -= tokens


def count_decodes(r):
    """Running requests that are due one token: those that answer."""
    decodes = 0
    for i in range(r.at[RUNNING_COUNT]):
        decodes += due_tokens(r, r.running[i]) == 1
    return decodes


def grow_or_preempt(r, row, request, tokens):
    """Get a running request its blocks, from the latest admitted if need be; False if that was itself."""
    while not grow(r, request, tokens):
        preempt(r, row, r.running[r.at[RUNNING_COUNT] - 1])
        if r.progress[request].status != RUNNING:
            return False
    return True
