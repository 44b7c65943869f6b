"""Speculative decoding: how much of a draft the target model accepts, and the token after it.

Math. A draft of n tokens d[0] .. d[n - 1] comes with q[i], the draft model's distribution that d[i] was drawn from; the
target gives p[0] .. p[n], the distributions at each position and after the last.

Greedy: d[i] is accepted while d[i] = argmax p[i]; then argmax p[i] of the first position that is not accepted follows,
or argmax p[n] where all are.

Rejection sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023): d[i] is accepted with probability
min(1, p[i, d[i]] / q[i, d[i]]); at the first rejection a token is drawn from the distribution

    max(p[i] - q[i], 0), normalised

and where all are accepted, from p[n]. Each emitted token is then distributed as the target's own. A draft that was not
drawn (n-gram look-up, a greedy draft model) has q[i] = 1 at d[i], 0 elsewhere: `draft_probabilities` None.

Draws are by Gumbel-max over `random_numbers`, named by the request's seed and step, in streams apart from sampling's.

Layout. Drafts of all requests one after the other: draft_tokens i64[D], draft_starts i32[requests + 1]; target rows
f32[D + requests, vocab], request r's position i at draft_starts[r] + r + i; draft rows f32[D, vocab]. Out: tokens
i64[requests, max_draft_tokens + 1], -1 after the last, and how many, i32[requests]. A request is one program.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import check_at_least, check_can_launch, check_tensor
from simkit.kernels.jit import jit
from simkit.kernels.random_numbers import (
    ACCEPTANCE,
    RECOVERY,
    exponential,
    exponential_reference,
    uniform,
    uniform_reference,
)

BLOCK_TOKENS = 2048
ACCEPTANCE_STREAM = tl.constexpr(ACCEPTANCE)
RECOVERY_STREAM = tl.constexpr(RECOVERY)


class Verified(NamedTuple):
    """What each request emits in the step."""

    tokens: torch.Tensor  # i64[requests, max_draft_tokens + 1], -1 after the last
    count: torch.Tensor  # i32[requests] accepted tokens and one more


@jit
def greedy_verification_kernel(
    draft_tokens: tl.pointer_type,
    draft_starts: tl.pointer_type,
    target_tokens: tl.pointer_type,
    tokens: tl.pointer_type,
    count: tl.pointer_type,
    tokens_stride: int,
    SLOTS: tl.constexpr,
) -> None:
    """One request, all positions at once. Grid (requests)."""
    request = tl.program_id(0)
    start = tl.load(draft_starts + request)
    drafted = tl.load(draft_starts + request + 1) - start
    slot = tl.arange(0, SLOTS)
    wanted = tl.load(target_tokens + start + request + slot, mask=slot <= drafted, other=-1)
    guess = tl.load(draft_tokens + start + slot, mask=slot < drafted, other=-2)
    accepted = tl.min(tl.where(wanted == guess, SLOTS, slot), 0)  # the first position that differs
    at = tokens + request.to(tl.int64) * tokens_stride + slot
    tl.store(at, tl.where(slot <= accepted, wanted, -1), mask=slot < tokens_stride)
    tl.store(count + request, accepted + 1)


@jit
def rejection_kernel(
    draft_tokens: tl.pointer_type,
    draft_starts: tl.pointer_type,
    target: tl.pointer_type,
    draft: tl.pointer_type,
    seed: tl.pointer_type,
    step: tl.pointer_type,
    tokens: tl.pointer_type,
    count: tl.pointer_type,
    vocab: int,
    target_stride: int,
    draft_stride: int,
    tokens_stride: int,
    DRAWN: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One request. Grid (requests). DRAWN: the draft has a distribution."""
    request = tl.program_id(0).to(tl.int64)
    start = tl.load(draft_starts + request)
    drafted = tl.load(draft_starts + request + 1) - start
    key, draws = tl.load(seed + request), tl.load(step + request)
    first_target = target + (start + request) * target_stride

    slot = tl.arange(0, SLOTS)
    guess = tl.load(draft_tokens + start + slot, mask=slot < drafted, other=0)
    p = tl.load(first_target + slot.to(tl.int64) * target_stride + guess, mask=slot < drafted, other=0.0)
    q = tl.full([SLOTS], 1.0, tl.float32)
    if DRAWN:
        row = (start + slot).to(tl.int64)
        q = tl.load(draft + row * draft_stride + guess, mask=slot < drafted, other=1.0)
    # u q < p: a token that the target gives no chance is never accepted, one at least as likely as drafted always
    taken = (slot < drafted) & (uniform(key, slot, draws, ACCEPTANCE_STREAM) * q < p)
    accepted = tl.min(tl.where(taken, SLOTS, slot), 0)
    rejected = accepted < drafted
    refused = tl.load(draft_tokens + start + accepted, mask=rejected, other=-1)

    lane = tl.arange(0, BLOCK)
    p_at = first_target + accepted.to(tl.int64) * target_stride
    q_at = draft + (start + accepted).to(tl.int64) * draft_stride
    total = tl.zeros([BLOCK], tl.float32)
    lane_best = tl.full([BLOCK], -1.0, tl.float32)
    lane_token = tl.zeros([BLOCK], tl.int32)
    target_best = tl.full([BLOCK], -1.0, tl.float32)
    target_token = tl.zeros([BLOCK], tl.int32)
    for first in range(0, vocab, BLOCK):
        token = first + lane
        ok = token < vocab
        chance = tl.load(p_at + token, mask=ok, other=0.0)
        race = exponential(key, token, draws, RECOVERY_STREAM)
        left = chance
        if DRAWN:
            left = tl.maximum(chance - tl.load(q_at + token, mask=ok & rejected, other=0.0), 0.0)
        else:
            left = tl.where(token == refused, 0.0, chance)
        total += left
        score = tl.where(ok, left / race, -1.0)
        lane_token = tl.where(score > lane_best, token, lane_token)
        lane_best = tl.maximum(lane_best, score)
        score = tl.where(ok, chance / race, -1.0)
        target_token = tl.where(score > target_best, token, target_token)
        target_best = tl.maximum(target_best, score)
    # rounding may leave nothing where p and q are equal: then p itself is what p - q tends to
    nothing = tl.sum(total, 0) <= 0.0
    best = tl.where(nothing, target_best, lane_best)
    best_token = tl.where(nothing, target_token, lane_token)
    winner = tl.min(tl.where(best == tl.max(best, 0), best_token, vocab), 0)

    emitted = tl.where(slot < accepted, guess, tl.where(slot == accepted, winner.to(tl.int64), -1))
    tl.store(tokens + request * tokens_stride + slot, emitted, mask=slot < tokens_stride)
    tl.store(count + request, accepted + 1)


def verify_greedy(
    draft_tokens: torch.Tensor, draft_starts: torch.Tensor, target_tokens: torch.Tensor, max_draft_tokens: int
) -> Verified:
    """The tokens that greedy decoding of the target alone would give, as far as the drafts got.

    Args:
        draft_tokens: i64[D].
        draft_starts: i32[requests + 1], ascending from 0 to D; a request may bring no draft.
        target_tokens: i64[D + requests], the likeliest of each target row.
        max_draft_tokens: at least the longest draft, known to the host so that it need not wait.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    requests = _check_drafts(draft_tokens, draft_starts, max_draft_tokens)
    check_tensor("target_tokens", target_tokens, (len(draft_tokens) + requests,), (torch.int64,), draft_tokens.device)
    check_can_launch("draft_tokens", draft_tokens, greedy_verification_kernel)
    verified = _room(requests, max_draft_tokens, draft_tokens.device)
    if requests:
        greedy_verification_kernel[(requests,)](
            draft_tokens,
            draft_starts,
            target_tokens,
            *verified,
            max_draft_tokens + 1,
            SLOTS=triton.next_power_of_2(max_draft_tokens + 1),
            num_warps=1,
        )
    return verified


def verify_draft(
    draft_tokens: torch.Tensor,
    draft_starts: torch.Tensor,
    target_probabilities: torch.Tensor,
    draft_probabilities: torch.Tensor | None,
    seed: torch.Tensor,
    step: torch.Tensor,
    max_draft_tokens: int,
) -> Verified:
    """Tokens distributed as the target's own, by rejection sampling.

    Args:
        draft_tokens: i64[D].
        draft_starts: i32[requests + 1], ascending from 0 to D; a request may bring no draft.
        target_probabilities: f32[D + requests, vocab], such as `sampling.sampling_probabilities` gives.
        draft_probabilities: f32[D, vocab] that the drafts were drawn from; None: they were not drawn.
        seed: i64[requests].
        step: i32[requests] draws that the request has made.
        max_draft_tokens: at least the longest draft, known to the host so that it need not wait.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    requests = _check_drafts(draft_tokens, draft_starts, max_draft_tokens)
    drafted, device = len(draft_tokens), draft_tokens.device
    check_tensor("target_probabilities", target_probabilities, (drafted + requests, None), (torch.float32,), device)
    vocab = target_probabilities.shape[1]
    if not vocab:
        raise ValueError("target_probabilities: a vocabulary of 0 tokens; at least 1 is expected")
    if draft_probabilities is not None:
        check_tensor("draft_probabilities", draft_probabilities, (drafted, vocab), (torch.float32,), device)
    check_tensor("seed", seed, (requests,), (torch.int64,), device)
    check_tensor("step", step, (requests,), (torch.int32,), device)
    check_can_launch("draft_tokens", draft_tokens, rejection_kernel)
    verified = _room(requests, max_draft_tokens, device)
    if requests:
        draft = target_probabilities if draft_probabilities is None else draft_probabilities
        rejection_kernel[(requests,)](
            draft_tokens,
            draft_starts,
            target_probabilities,
            draft,
            seed,
            step,
            *verified,
            vocab,
            target_probabilities.stride(0),
            draft.stride(0),
            max_draft_tokens + 1,
            DRAWN=draft_probabilities is not None,
            SLOTS=triton.next_power_of_2(max_draft_tokens + 1),
            BLOCK=BLOCK_TOKENS,
            num_warps=8,
        )
    return verified


def _check_drafts(draft_tokens: torch.Tensor, draft_starts: torch.Tensor, max_draft_tokens: int) -> int:
    """The number of requests."""
    check_tensor("draft_tokens", draft_tokens, (None,), (torch.int64,), draft_tokens.device)
    check_tensor("draft_starts", draft_starts, (None,), (torch.int32,), draft_tokens.device)
    if not len(draft_starts):
        raise ValueError("draft_starts: is empty; one entry more than there are requests is expected")
    check_at_least("max_draft_tokens", max_draft_tokens, 0)
    return len(draft_starts) - 1


def _room(requests: int, max_draft_tokens: int, device: torch.device) -> Verified:
    tokens = torch.empty((requests, max_draft_tokens + 1), dtype=torch.int64, device=device)
    return Verified(tokens, torch.empty(requests, dtype=torch.int32, device=device))


def verify_greedy_reference(
    draft_tokens: torch.Tensor, draft_starts: torch.Tensor, target_tokens: torch.Tensor
) -> list[list[int]]:
    """The emitted tokens of each request."""
    emitted = []
    for request, (start, end) in enumerate(pairwise(draft_starts.tolist())):
        row = target_tokens[start + request : end + request + 1].tolist()
        accepted = 0
        while accepted < end - start and int(draft_tokens[start + accepted]) == row[accepted]:
            accepted += 1
        emitted.append(row[: accepted + 1])
    return emitted


def verify_draft_reference(
    draft_tokens: torch.Tensor,
    draft_starts: torch.Tensor,
    target_probabilities: torch.Tensor,
    draft_probabilities: torch.Tensor | None,
    seed: torch.Tensor,
    step: torch.Tensor,
) -> list[list[int]]:
    """The same from float64, position by position: the emitted tokens of each request."""
    vocabulary = torch.arange(target_probabilities.shape[1])
    emitted = []
    for request, (start, end) in enumerate(pairwise(draft_starts.tolist())):
        key, draws = int(seed[request]), int(step[request])
        chances = uniform_reference(key, torch.arange(end - start), draws, ACCEPTANCE)
        tokens: list[int] = []
        weights = target_probabilities[end + request].double()
        for i, token in enumerate(draft_tokens[start:end].tolist()):
            p = target_probabilities[start + request + i].double()
            q = torch.zeros_like(p)
            q[token] = 1.0
            if draft_probabilities is not None:
                q = draft_probabilities[start + i].double()
            if not float(chances[i]) * float(q[token]) < float(p[token]):
                left = (p - q).clamp(min=0)
                weights = left if float(left.sum()) > 0 else p
                break
            tokens.append(token)
        race = exponential_reference(key, vocabulary, draws, RECOVERY)
        emitted.append([*tokens, int((weights / race).argmax())])
    return emitted
