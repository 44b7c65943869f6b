"""vLLM V1's discipline: which requests get how many tokens in the next step.

Rules and their order are those of vLLM 0.32's Scheduler.schedule(); switches in Limits give other versions. There
is no prefill phase and no decode phase: a step gives each request some of the tokens it is due.
"""

from simkit.compiled import called, inlined
from simkit.engine.actions import admit, choose_victim, fits, give, grow, preempt
from simkit.engine.drafts import drafts_of, padded
from simkit.engine.prefix import longest_hit
from simkit.engine.ring import in_flight
from simkit.engine.state import FCFS, PREEMPTED_NOW, RUNNING_COUNT, STATES_LOST, WAITING_COUNT, Replica
from simkit.engine.states import is_being_kept, to_kept_state
from simkit.engine.waiting import can_set_aside, head, put_back, set_aside


@inlined
def schedule(r: Replica, row: int) -> None:
    """Serve running requests, then, if nobody was preempted, admit waiting ones."""
    if r.limits.state_chunks != STATES_LOST:
        _schedule_for_states(r, row)
    else:
        _schedule(r, row, cuts=False)


@called
def _schedule_for_states(r: Replica, row: int) -> None:
    """The same where chunks end so that states can be cached: machine code of its own, that others are no slower."""
    _schedule(r, row, cuts=True)


@inlined
def _schedule(r: Replica, row: int, cuts: bool) -> None:
    threshold = _long_prefill_cap(r)
    kept = r.limits.draft_reserve + r.limits.draft_slots
    budget = _schedule_running(r, row, threshold, r.limits.max_num_batched_tokens - kept, cuts)
    # a step that preempted admits nobody (vLLM scheduler, waiting loop)
    if r.at[PREEMPTED_NOW] == 0:
        _schedule_waiting(r, row, threshold, budget, cuts)


@inlined
def _long_prefill_cap(r: Replica) -> int:
    """The most tokens one request may get in this step; 0: no cap."""
    alive = r.at[RUNNING_COUNT] + r.at[WAITING_COUNT]
    threshold = r.limits.long_prefill_token_threshold
    if r.limits.lone_request_uncapped and alive <= 1:
        threshold = 0
    # the fair share is a floor under a threshold; where none is set it sets none (vLLM 0.31 Scheduler.schedule)
    if r.limits.adaptive_long_prefill and threshold > 0 and alive > 0:
        threshold = max(threshold, r.limits.max_num_batched_tokens // alive)
    return threshold


@inlined
def _schedule_running(r: Replica, row: int, threshold: int, budget: int, cuts: bool) -> int:
    """Give running requests, in order of admission, what they are due; returns the budget left.

    The budget is what the next request may get: where a draft reads more tokens of it, those are kept back already.
    Decodes do not go before prefill chunks: a running prefill takes the whole remaining budget.
    """
    at = r.at
    slots = r.limits.draft_slots
    i = 0
    while i < at[RUNNING_COUNT] and budget > 0:
        request = r.running[i]
        progress = r.progress[request]
        computed = progress.computed
        placeholders = progress.placeholders
        # asynchronous scheduling foresees the end by length, not by EOS
        if placeholders > 0 and computed + 2 - placeholders >= _last_token(r, request):
            i += 1
            continue
        due = progress.known + placeholders - computed
        if due == 1:
            due += drafts_of(r, request)
        if 0 < threshold < due:
            due = threshold
        due = min(due, budget, r.limits.max_model_len - computed - 1)
        if cuts:
            due = to_kept_state(r, request, computed, due)
        if due <= 0:
            i += 1
            continue
        while not grow(r, request, computed + due):
            victim = choose_victim(r)
            refund, place = preempt(r, row, victim)
            budget += refund + (slots if refund > 0 else 0)
            # before 0.28 a victim that this step had passed over did not count, and the next in line lost its turn
            if place < i and (refund > 0 or r.limits.passed_over_counts):
                i -= 1
            if victim == request:
                if r.limits.ordering == FCFS or not r.limits.serves_past_self_victim:
                    return budget
                due = 0
                break
        if due == 0:
            continue
        give(r, row, request, due, computed)
        budget -= due + slots
        i += 1
    return budget


@inlined
def _last_token(r: Replica, request: int) -> int:
    """Tokens of a request when it has produced all that it asked for."""
    return int(r.progress[request].asked_until)


@inlined
def _schedule_waiting(r: Replica, row: int, threshold: int, budget: int, cuts: bool) -> None:
    """Admit from the head of the queue while it fits; nobody overtakes a head that does not."""
    progress = r.progress
    at = r.at
    slots = r.limits.draft_slots
    aside = 0
    while budget > 0 and at[WAITING_COUNT] > 0 and at[RUNNING_COUNT] < r.limits.max_running:
        request = head(r)
        # its token is still on its way through the pipeline: the next overtakes it (vLLM 0.27 to 0.33, waiting loop)
        if r.limits.stages > 1 and in_flight(r, request):
            if not can_set_aside(r, aside):
                break
            set_aside(r, aside)
            aside += 1
            continue
        hits, idle = 0, 0
        if r.limits.prefix_caching:
            hits, idle = longest_hit(r, request)
        hit = hits * r.limits.block_size
        due = padded(r, row, hit, progress[request].known - hit, budget)
        if due == 0:
            break
        if 0 < threshold < due:
            due = threshold
        if not r.limits.chunked_prefill and due > budget:
            break
        due = min(due, budget)
        if cuts:
            due = to_kept_state(r, request, hit, due)
            if due == 0 or is_being_kept(r, row, request, hits):
                break
        if not fits(r, request, hit + due, hits, idle):
            break
        admit(r, request, hits, hit + due)
        give(r, row, request, due, hit)
        budget -= due + slots
    put_back(r, aside)
