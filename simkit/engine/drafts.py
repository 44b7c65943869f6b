"""Speculative decoding: a draft proposes tokens, one step of the target checks them all, a leading run is accepted.

Whether a proposal is accepted is drawn once for each place in each request's answer, from the seed alone: neither
batching nor preemption changes the draws, so both clocks see the same. With acceptance a and k drafts a step yields
(1 - a^(k+1)) / (1 - a) tokens on average (Leviathan et al. 2023, equation 1).
"""

from simkit.compiled import compiled, inlined
from simkit.engine.state import ADMITTED, DECODE, PAD_BEHIND_HIT, PAD_NOBODY, PAD_OR_WAIT, Limits, Replica

_MASK = 0xFFFFFFFF
_FACTOR = 0x45D9F3B  # of a well-mixing 32-bit hash (T. Mueller); small enough for products to fit 63 bits


@inlined
def drafts_of(r: Replica, request: int) -> int:
    """Tokens proposed to follow what a running request knows; none unless its latest step yielded a token."""
    if r.limits.speculative_tokens > 0 and r.progress[request].phase == DECODE:
        return int(r.limits.speculative_tokens)
    return 0


@inlined
def padded(r: Replica, row: int, hit: int, due: int, budget: int) -> int:
    """Tokens of a request that is being admitted, empty drafts included; 0: it waits for a step with more budget.

    Its drafts, if it had any, are lost. Where all that a step serves are decodes, `running` ones and it, they are
    replaced by as many that nobody accepts: vLLM 0.25 and later, Scheduler.schedule(), waiting loop.
    """
    limits = r.limits
    if limits.speculative_tokens == 0 or limits.draft_padding == PAD_NOBODY or due != 1:
        return due
    # the batch begins with those that ran before; each whom this step admitted has an entry behind them
    beside = r.batches[row].length - r.at[ADMITTED]
    for k in range(beside):
        if r.progress[r.entries[row, k].request].phase != DECODE:
            return due
    if beside == 0 and (limits.draft_padding != PAD_BEHIND_HIT or hit == 0):
        return due
    whole = 1 + limits.speculative_tokens
    if limits.draft_padding == PAD_OR_WAIT:
        return 0 if whole > budget or hit + whole > limits.max_model_len else whole
    if hit + whole + 1 > limits.max_model_len:
        return due
    return 0 if whole > budget else whole


@compiled
def accepted_drafts(limits: Limits, request: int, known: int, drafted: int) -> int:
    """Of `drafted` tokens proposed after `known` ones, how many come before the first that is not accepted."""
    for i in range(drafted):
        if draw(limits.acceptance_seed, request, known + i) >= limits.acceptance:
            return i
    return drafted


@compiled
def draw(seed: int, request: int, place: int) -> float:
    """A number of [0, 1) that belongs to a place in a request's tokens."""
    return float(_mixed(_mixed(_mixed(seed & _MASK) ^ (request & _MASK)) ^ (place & _MASK))) / 4294967296.0


@inlined
def _mixed(value: int) -> int:
    value = (value + 0x9E3779B9) & _MASK
    value = ((value ^ (value >> 16)) * _FACTOR) & _MASK
    value = ((value ^ (value >> 16)) * _FACTOR) & _MASK
    return value ^ (value >> 16)
