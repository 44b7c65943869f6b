"""Routing of tokens to experts: scores, the best k of them with their weights, and the order in which experts compute.

Math. For a token's router logits x over E experts and an optional bias b an expert:

    softmax        s = softmax(x)           over all experts      Mixtral, Qwen MoE
    sigmoid        s = 1 / (1 + exp(-x))                          DeepSeek-V3, GLM-4.5
    topk_softmax   s = x, softmax over the chosen k alone         GPT-OSS

    chosen = the k experts of largest s + b, the lower number where equal
    weight = s[chosen], over their sum if `renormalize`; times `scale`

b steers the choice and not the weight (DeepSeek-V3's e_score_correction_bias). Softmax then renormalising equals
topk_softmax without bias; both are here because models say either. Arithmetic is f32.

Order. Pairs (token, slot), numbered token * k + slot, are sorted by expert, stably, and each expert's are filled up to
whole blocks of `block_rows`, so that a tile of the grouped GEMM has one expert:

    rows[i]            pair number, or tokens * k for a filler          i32[most]
    block_expert[j]    the expert of rows j * block_rows .., or -1      i32[most / block_rows]

with most = tokens * k + min(E, tokens * k) * (block_rows - 1), rounded up: known to the host, so nothing waits and a
graph can be captured. An expert's program counts and places its own pairs: no atomics, the order is always the same.

Sources: vLLM `topk_softmax`, `moe_align_block_size`; Shazeer et al. 2017 for the gate. Not here: choice limited to
groups of experts (DeepSeek's n_group), which changes which experts, not what it costs.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_at_least, check_can_launch, check_tensor
from simkit.kernels.jit import jit

SCORES = ("softmax", "sigmoid", "topk_softmax")
MAX_EXPERTS = 1024
BLOCK_PAIRS = 1024


class Routes(NamedTuple):
    """Where each token goes."""

    weights: torch.Tensor  # f32[tokens, k]
    experts: torch.Tensor  # i32[tokens, k]


class ExpertOrder(NamedTuple):
    """Pairs of token and slot, sorted by expert."""

    rows: torch.Tensor  # i32[most] pair numbers; tokens * k: filler
    block_expert: torch.Tensor  # i32[most / block_rows]; -1: no pairs
    block_rows: int
    pairs: int  # tokens * k


@jit
def routing_kernel(
    logits: tl.pointer_type,
    bias: tl.pointer_type,
    weights: tl.pointer_type,
    experts: tl.pointer_type,
    tokens: int,
    stride: int,
    scale: float,
    EXPERTS: tl.constexpr,
    K: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """ROWS tokens. Grid (tokens / ROWS rounded up)."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, BLOCK)
    ok = (token < tokens)[:, None] & (expert < EXPERTS)[None, :]
    at = logits + token[:, None].to(tl.int64) * stride + expert[None, :]
    # rows of no token are 0, not -inf, so that nothing is NaN
    x = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    present = (expert < EXPERTS)[None, :]
    if SCORE == "softmax":
        x = tl.where(present, x, float("-inf"))
        score = tl.exp(x - tl.max(x, 1)[:, None])
        score = score / tl.sum(score, 1)[:, None]
    elif SCORE == "sigmoid":
        score = tl.sigmoid(x)
    else:
        score = x
    rank = score
    if BIAS:
        rank += tl.load(bias + expert, mask=expert < EXPERTS, other=0.0).to(tl.float32)[None, :]
    rank = tl.where(present, rank, float("-inf"))

    slot = tl.arange(0, SLOTS)
    chosen = tl.zeros([ROWS, SLOTS], tl.int32)
    share = tl.full([ROWS, SLOTS], float("-inf"), tl.float32)
    left = tl.zeros([ROWS, BLOCK], tl.int32) + present.to(tl.int32)
    for number in tl.static_range(K):
        open_rank = tl.where(left > 0, rank, float("-inf"))
        top = tl.max(open_rank, 1)
        # an expert ruled out by -inf logits is still taken when no other is left
        best = tl.min(tl.where((open_rank == top[:, None]) & (left > 0), expert[None, :], BLOCK), 1)
        taken = expert[None, :] == best[:, None]
        value = tl.sum(tl.where(taken, score, 0.0), 1)
        chosen = tl.where((slot == number)[None, :], best[:, None], chosen)
        share = tl.where((slot == number)[None, :], value[:, None], share)
        left = tl.where(taken, 0, left)

    used = (slot < K)[None, :]
    if SCORE == "topk_softmax":
        share = tl.exp(share - tl.max(share, 1)[:, None])
        share = share / tl.sum(share, 1)[:, None]
    else:
        share = tl.where(used, share, 0.0)
        if RENORMALIZE:
            share = share / tl.sum(share, 1)[:, None]
    out = token[:, None].to(tl.int64) * K + slot[None, :]
    store = (token < tokens)[:, None] & used
    tl.store(weights + out, share * scale, mask=store)
    tl.store(experts + out, chosen, mask=store)


@jit
def expert_count_kernel(experts: tl.pointer_type, counts: tl.pointer_type, pairs: int, BLOCK: tl.constexpr) -> None:
    """How many pairs go to one expert. Grid (experts)."""
    expert = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    found = tl.zeros([BLOCK], tl.int32)
    for first in range(0, pairs, BLOCK):
        own = tl.load(experts + first + lane, mask=first + lane < pairs, other=-1) == expert
        found += own.to(tl.int32)
    tl.store(counts + expert, tl.sum(found, 0))


@jit
def expert_place_kernel(
    experts: tl.pointer_type,
    counts: tl.pointer_type,
    rows: tl.pointer_type,
    block_expert: tl.pointer_type,
    pairs: int,
    BLOCK_ROWS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The pairs of one expert, in their order, and fillers up to whole blocks. Grid (experts)."""
    expert = tl.program_id(0)
    other = tl.arange(0, EXPERTS_BLOCK)
    before = tl.load(counts + other, mask=other < expert, other=0)
    first_block = tl.sum((before + BLOCK_ROWS - 1) // BLOCK_ROWS, 0)
    count = tl.load(counts + expert)
    blocks = (count + BLOCK_ROWS - 1) // BLOCK_ROWS
    for block in range(0, blocks):
        tl.store(block_expert + first_block + block, expert)
    lane = tl.arange(0, BLOCK)
    place = first_block * BLOCK_ROWS
    for first in range(0, pairs, BLOCK):
        own = (tl.load(experts + first + lane, mask=first + lane < pairs, other=-1) == expert).to(tl.int32)
        tl.store(rows + place + tl.cumsum(own, 0) - 1, first + lane, mask=own > 0)
        place += tl.sum(own, 0)
    filler = tl.arange(0, BLOCK_ROWS)
    end = (first_block + blocks) * BLOCK_ROWS
    tl.store(rows + place + filler, tl.zeros([BLOCK_ROWS], tl.int32) + pairs, mask=place + filler < end)


def route(
    logits: torch.Tensor,
    k: int,
    score: str,
    renormalize: bool = True,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
) -> Routes:
    """The k experts of each token and their weights.

    Args:
        logits: [tokens, experts], f32, f16 or bf16, last axis contiguous, at most 1,024 experts, no NaN.
        k: experts a token.
        score: one of SCORES.
        renormalize: weights add up to `scale`; topk_softmax's do always.
        bias: [experts], added to the scores for the choice alone.
        scale: of the weights.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    check_tensor("logits", logits, (None, None), FLOATS, logits.device)
    tokens, experts = logits.shape
    if not 1 <= experts <= MAX_EXPERTS:
        raise ValueError(f"logits: {experts} experts; 1 to {MAX_EXPERTS} are expected")
    check_at_least("k", k, 1)
    if k > experts:
        raise ValueError(f"k: is {k}; at most the {experts} experts are expected")
    if score not in SCORES:
        raise ValueError(f"score: is {score!r}; one of {SCORES} is expected")
    if bias is not None:
        check_tensor("bias", bias, (experts,), FLOATS, logits.device)
    check_can_launch("logits", logits, routing_kernel)
    routes = Routes(
        torch.empty((tokens, k), dtype=torch.float32, device=logits.device),
        torch.empty((tokens, k), dtype=torch.int32, device=logits.device),
    )
    if tokens:
        block = triton.next_power_of_2(experts)
        rows = max(1, min(16, 1024 // block))
        routing_kernel[(triton.cdiv(tokens, rows),)](
            logits,
            logits if bias is None else bias,
            *routes,
            tokens,
            logits.stride(0),
            scale,
            EXPERTS=experts,
            K=k,
            SCORE=score,
            RENORMALIZE=renormalize,
            BIAS=bias is not None,
            ROWS=rows,
            BLOCK=block,
            SLOTS=triton.next_power_of_2(k),
            num_warps=4,
        )
    return routes


def order_by_expert(experts: torch.Tensor, expert_count: int, block_rows: int) -> ExpertOrder:
    """Pairs of token and slot, sorted by expert and filled up to blocks.

    Args:
        experts: i32[tokens, k], contiguous, each in [0, expert_count).
        expert_count: experts there are.
        block_rows: rows of a tile of the grouped GEMM, a power of two.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    check_tensor("experts", experts, (None, None), (torch.int32,), experts.device)
    if not experts.is_contiguous():
        raise ValueError(f"experts: its strides are {experts.stride()}; a contiguous tensor is expected")
    check_at_least("expert_count", expert_count, 1)
    if expert_count > MAX_EXPERTS:
        raise ValueError(f"expert_count: is {expert_count}; at most {MAX_EXPERTS} are expected")
    if block_rows < 1 or block_rows & (block_rows - 1):
        raise ValueError(f"block_rows: is {block_rows}; a power of two is expected")
    check_can_launch("experts", experts, expert_place_kernel)
    pairs, device = experts.numel(), experts.device
    blocks = triton.cdiv(pairs + min(expert_count, pairs) * (block_rows - 1), block_rows)
    rows = torch.full((blocks * block_rows,), pairs, dtype=torch.int32, device=device)
    order = ExpertOrder(rows, torch.full((blocks,), -1, dtype=torch.int32, device=device), block_rows, pairs)
    if pairs:
        counts = torch.empty(expert_count, dtype=torch.int32, device=device)
        expert_count_kernel[(expert_count,)](experts, counts, pairs, BLOCK=BLOCK_PAIRS, num_warps=4)
        expert_place_kernel[(expert_count,)](
            experts,
            counts,
            order.rows,
            order.block_expert,
            pairs,
            BLOCK_ROWS=block_rows,
            EXPERTS_BLOCK=triton.next_power_of_2(expert_count),
            BLOCK=BLOCK_PAIRS,
            num_warps=4,
        )
    return order


def route_reference(
    logits: torch.Tensor,
    k: int,
    score: str,
    renormalize: bool = True,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in float64: weights f64[tokens, k] and experts i64[tokens, k]."""
    x = logits.double()
    scores = {"softmax": torch.softmax(x, dim=1), "sigmoid": torch.sigmoid(x), "topk_softmax": x}[score]
    rank = scores if bias is None else scores + bias.double()
    experts = rank.sort(dim=1, descending=True, stable=True).indices[:, :k]
    weights = scores.gather(1, experts)
    if score == "topk_softmax":
        weights = torch.softmax(weights, dim=1)
    elif renormalize:
        weights = weights / weights.sum(dim=1, keepdim=True)
    return weights * scale, experts


def order_by_expert_reference(experts: torch.Tensor, block_rows: int) -> tuple[list[int], list[int]]:
    """Pair numbers with fillers, and the expert of each block, as lists without what follows the last block."""
    flat = experts.flatten().tolist()
    rows: list[int] = []
    blocks: list[int] = []
    for expert in sorted(set(flat)):
        own = [pair for pair, chosen in enumerate(flat) if chosen == expert]
        fill = -len(own) % block_rows
        rows += own + [len(flat)] * fill
        blocks += [expert] * ((len(own) + fill) // block_rows)
    return rows, blocks
