"""SGLang: who shares most with the prefix cache goes first; memory is lent against an estimate of what answers need.

Rules of SGLang's schedule_policy.py (SchedulePolicy, PrefillAdder), scheduler.py (get_next_batch_to_run,
update_running_batch) and schedule_batch.py (retract_decode), as of 2025, with its default settings: a step is prompts
(whole, the last one cut) or decodes, prompts go first. A request enters if its prompt and all the tokens it asks for
fit beside what running ones are expected to produce still: the tokens they asked for times the new-token ratio. The
ratio falls with every step of decodes; when memory has run out after all, some are sent back and it is estimated anew.

Left out: grouping of waiting requests that share a prefix with one another (in-batch prefix caching). Different:
requests that were sent back wait at the front of the queue, not at its end.
"""

from simkit.compiled import inlined
from simkit.engine.actions import choose_victim, preempt
from simkit.engine.prefix import longest_hit
from simkit.engine.shares import cached_prefix, continue_prompts, due_tokens, last_token, serve_decodes, start
from simkit.engine.state import (
    FCFS,
    FREE_BLOCKS,
    FULL_AT,
    NEW_TOKEN_RATIO,
    PREEMPTED,
    RUNNING_COUNT,
    WAITING,
    WAITING_COUNT,
    WAITING_HEAD,
    WAITING_TAIL,
    Replica,
)
from simkit.engine.waiting import head

# SGLang environ.py, in 1e-9: SGLANG_INIT_NEW_TOKEN_RATIO 0.7, times SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR 0.14, the way
# between them in SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS 600
UNIT = 1_000_000_000
FIRST_RATIO = 700_000_000
LEAST_RATIO = 98_000_000
RATIO_DECAY = (FIRST_RATIO - LEAST_RATIO) // 600
LOOKAHEAD_TOKENS = 20  # a request, in the estimate after requests were sent back (SGLANG_RETRACT_DECODE_STEPS)
MOST_EXPECTED_TOKENS = 4096  # of one request (SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION)
LONGEST_SORTED_QUEUE = 128  # beyond, first come, first served (SchedulePolicy._determine_active_policy)


@inlined
def schedule(r: Replica, row: int) -> None:
    """Prompts if there are any to compute and they fit; decodes if not."""
    at = r.at
    # an engine that has nothing to do forgets its estimate
    if at[RUNNING_COUNT] == 0:
        at[NEW_TOKEN_RATIO] = FIRST_RATIO
    free_tokens = r.pool.counts[FREE_BLOCKS] * r.limits.block_size - _expected_tokens(r)
    budget = continue_prompts(r, row, r.limits.max_num_batched_tokens)
    if r.batches[row].length > 0:
        at[FULL_AT] = 0
        request = r.entries[row, 0].request
        free_tokens -= r.entries[row, 0].tokens + min(_tokens_left(r, request), MOST_EXPECTED_TOKENS)
    # after an admission failed, none is tried until somebody has left (batch_is_full)
    if at[FULL_AT] == 0 or at[RUNNING_COUNT] < at[FULL_AT]:
        at[FULL_AT] = 0
        _admit_prompts(r, row, budget, free_tokens)
    if r.batches[row].length == 0:
        _make_room_for_decodes(r, row)
        serve_decodes(r, row, r.limits.max_num_batched_tokens)


@inlined
def _tokens_left(r: Replica, request: int) -> int:
    """Output tokens that a request may still produce."""
    progress = r.progress[request]
    return int(max(last_token(r, request) - progress.known - progress.placeholders, 0))


@inlined
def _expected_tokens(r: Replica) -> int:
    """Tokens that those who decode are expected to produce still."""
    left = 0
    for i in range(r.at[RUNNING_COUNT]):
        if due_tokens(r, r.running[i]) <= 1:
            left += min(_tokens_left(r, r.running[i]), MOST_EXPECTED_TOKENS)
    return int(left * r.at[NEW_TOKEN_RATIO] // UNIT)


@inlined
def _admit_prompts(r: Replica, row: int, budget: int, free_tokens: int) -> None:
    """Admit while prompt, tokens asked for and a spare block fit; an idle engine takes whoever is first."""
    at = r.at
    size = r.limits.block_size
    while budget > 0 and at[WAITING_COUNT] > 0 and at[RUNNING_COUNT] < r.limits.max_running:
        _bring_longest_prefix_to_front(r)
        request = head(r)
        hits, idle = cached_prefix(r, request)
        due = int(r.progress[request].known) - hits * size
        promised = min(_tokens_left(r, request), MOST_EXPECTED_TOKENS)
        # a cached prefix that is about to be used is no longer free
        free_tokens -= idle * size
        if at[RUNNING_COUNT] > 0 and due + promised + size >= free_tokens:
            at[FULL_AT] = at[RUNNING_COUNT]
            return
        if due > budget and not r.limits.chunked_prefill:
            return
        share = min(due, budget)
        start(r, row, request, hits, share, hits * size + share)
        free_tokens -= (share + size - 1) // size * size + size
        # of a prompt that was cut, the answer is far away
        if share == due:
            free_tokens -= promised
        budget -= share


@inlined
def _bring_longest_prefix_to_front(r: Replica) -> None:
    """Sort no further than needed: the waiting request with the longest cached prefix, of equals the first in line."""
    at = r.at
    if r.limits.ordering != FCFS or not r.limits.prefix_caching or at[WAITING_COUNT] > LONGEST_SORTED_QUEUE:
        return
    first = at[WAITING_HEAD]
    best, most = first, -1
    for i in range(first, at[WAITING_TAIL]):
        status = r.progress[r.waiting[i]].status
        if status in (WAITING, PREEMPTED):
            hits, _ = longest_hit(r, r.waiting[i])
            if hits > most:
                best, most = i, hits
    moving = r.waiting[best]
    for i in range(best, first, -1):
        r.waiting[i] = r.waiting[i - 1]
    r.waiting[first] = moving


@inlined
def _make_room_for_decodes(r: Replica, row: int) -> None:
    """Send requests back until the others can take one more token each, and correct the ratio either way."""
    at = r.at
    if _blocks_for_decodes(r) <= r.pool.counts[FREE_BLOCKS]:
        at[NEW_TOKEN_RATIO] = max(at[NEW_TOKEN_RATIO] - RATIO_DECAY, LEAST_RATIO)
        return
    while at[RUNNING_COUNT] > 1 and _blocks_for_decodes(r) > r.pool.counts[FREE_BLOCKS]:
        preempt(r, row, _least_progressed(r) if r.limits.ordering == FCFS else choose_victim(r))
    at[NEW_TOKEN_RATIO] = _estimated_ratio(r)


@inlined
def _blocks_for_decodes(r: Replica) -> int:
    """New blocks that one more token for everyone who decodes takes."""
    blocks = 0
    for i in range(r.at[RUNNING_COUNT]):
        progress = r.progress[r.running[i]]
        if due_tokens(r, r.running[i]) == 1 and progress.computed == progress.held * r.limits.block_size:
            blocks += 1
    return blocks


@inlined
def _least_progressed(r: Replica) -> int:
    """The running request with fewest outputs, of equals that with the longest prompt, of those the latest."""
    victim = int(r.running[0])
    for i in range(1, r.at[RUNNING_COUNT]):
        request = int(r.running[i])
        fewer = _outputs(r, request) - _outputs(r, victim)
        if fewer < 0 or (fewer == 0 and r.requests[request].prompt >= r.requests[victim].prompt):
            victim = request
    return victim


@inlined
def _outputs(r: Replica, request: int) -> int:
    progress = r.progress[request]
    return int(progress.known + progress.placeholders - r.requests[request].prompt)


@inlined
def _estimated_ratio(r: Replica) -> int:
    """The share of what was asked for that those who stayed have produced, or will have in a moment."""
    produced = 0
    asked = 1
    for i in range(r.at[RUNNING_COUNT]):
        produced += _outputs(r, r.running[i]) + LOOKAHEAD_TOKENS
        asked += int(r.requests[r.running[i]].max_tokens)
    return min(produced * UNIT // asked, UNIT)
