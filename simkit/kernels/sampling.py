"""Sampling a token a row of logits: greedy, temperature, min-p, top-k and top-p, reproducible by seed.

Math. For a row of logits x with maximum x_max, at temperature T, let d[t] = (x_max - x[t]) / T >= 0. Each filter keeps
the tokens with d at most a limit, so all three together are one cutoff:

    min-p   d[t] <= -log(min_p)                                 probability at least min_p times the largest
    top-k   d[t] <= the k-th smallest d
    top-p   d[t] <= the least c with sum_{d[t] <= c} exp(-d[t]) >= top_p * M,  M the mass that min-p and top-k leave

in this order (vLLM V1: min-p is a logits processor before top-k and top-p, and top-p is of what top-k leaves). Tokens
as likely as the last one kept are kept too. Then p[t] = exp(-d[t]) / mass for kept tokens, else 0, and the token is

    argmax_t exp(-d[t]) / e[t],  e[t] exponential             which is t with probability p[t] (the Gumbel-max trick)

with e from `random_numbers`, so a request's tokens depend on its seed and its count of draws alone. T < 1e-5 is greedy:
the lowest of the likeliest tokens (vLLM's `_SAMPLING_EPS`).

The cutoff needs no sort: d >= 0, so its f32 bits order as integers, and the least cutoff that reaches a count or a mass
is found by bisection of 31 bits, each a pass over the row, which stays in L2. A row's limits are one program.

Layout. logits [rows, vocab] of f32, f16 or bf16, last axis contiguous; parameters [rows] each.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from simkit.kernels.arguments import FLOATS, check_can_launch, check_tensor
from simkit.kernels.jit import jit
from simkit.kernels.random_numbers import SAMPLING, exponential, exponential_reference

GREEDY_BELOW = 1e-5
BLOCK_TOKENS = 2048
WARPS = 8
STREAM = tl.constexpr(SAMPLING)


class SamplingParameters(NamedTuple):
    """How each row is sampled."""

    temperature: torch.Tensor  # f32[rows], below 1e-5: greedy
    top_k: torch.Tensor  # i32[rows], 0: all
    top_p: torch.Tensor  # f32[rows], 1: all
    min_p: torch.Tensor  # f32[rows], 0: all
    seed: torch.Tensor  # i64[rows]
    step: torch.Tensor  # i32[rows] draws that the request has made


class Limits(NamedTuple):
    """What the filters leave of each row."""

    best: torch.Tensor  # f32[rows] the largest logit
    token: torch.Tensor  # i32[rows] the lowest token that has it
    cutoff: torch.Tensor  # f32[rows] the largest d kept; -1 for greedy rows
    mass: torch.Tensor  # f32[rows] sum of exp(-d) over kept tokens


@jit
def sampling_limits_kernel(
    logits: tl.pointer_type,
    temperature: tl.pointer_type,
    top_k: tl.pointer_type,
    top_p: tl.pointer_type,
    min_p: tl.pointer_type,
    best_logit: tl.pointer_type,
    best_token: tl.pointer_type,
    cutoff_out: tl.pointer_type,
    mass_out: tl.pointer_type,
    vocab: int,
    stride: int,
    BLOCK: tl.constexpr,
) -> None:
    """The cutoff of one row. Grid (rows)."""
    row = tl.program_id(0).to(tl.int64)
    at = logits + row * stride
    lane = tl.arange(0, BLOCK)
    lane_best = tl.full([BLOCK], float("-inf"), tl.float32)
    lane_token = tl.zeros([BLOCK], tl.int32)
    for first in range(0, vocab, BLOCK):
        x = tl.load(at + first + lane, mask=first + lane < vocab, other=float("-inf")).to(tl.float32)
        lane_token = tl.where(x > lane_best, first + lane, lane_token)
        lane_best = tl.maximum(lane_best, x)
    best = tl.max(lane_best, 0)
    tl.store(best_logit + row, best)
    tl.store(best_token + row, tl.min(tl.where(lane_best == best, lane_token, vocab), 0))

    heat = tl.load(temperature + row)
    if heat < 1e-5:
        tl.store(cutoff_out + row, -1.0)
        tl.store(mass_out + row, 1.0)
        return
    cold = 1.0 / heat
    # 0 - log: the negative zero of -log(1) would order below all others
    high = (0.0 - tl.log(tl.load(min_p + row))).to(tl.int32, bitcast=True)

    wanted = tl.load(top_k + row)
    if (wanted > 0) & (wanted < vocab):
        low = 0
        while low < high:
            middle = low + (high - low) // 2
            counts = tl.zeros([BLOCK], tl.int32)
            for first in range(0, vocab, BLOCK):
                ok = first + lane < vocab
                x = tl.load(at + first + lane, mask=ok, other=float("-inf")).to(tl.float32)
                d = (best - x) * cold
                counts += (ok & (d.to(tl.int32, bitcast=True) <= middle)).to(tl.int32)
            enough = tl.sum(counts, 0) >= wanted
            low = tl.where(enough, low, middle + 1)
            high = tl.where(enough, middle, high)

    masses = tl.zeros([BLOCK], tl.float32)
    for first in range(0, vocab, BLOCK):
        x = tl.load(at + first + lane, mask=first + lane < vocab, other=float("-inf")).to(tl.float32)
        d = (best - x) * cold
        masses += tl.where(d.to(tl.int32, bitcast=True) <= high, tl.exp(-d), 0.0)
    mass = tl.sum(masses, 0)

    share = tl.load(top_p + row)
    if share < 1.0:
        target = share * mass
        low = 0
        while low < high:
            middle = low + (high - low) // 2
            masses = tl.zeros([BLOCK], tl.float32)
            for first in range(0, vocab, BLOCK):
                x = tl.load(at + first + lane, mask=first + lane < vocab, other=float("-inf")).to(tl.float32)
                d = (best - x) * cold
                masses += tl.where(d.to(tl.int32, bitcast=True) <= middle, tl.exp(-d), 0.0)
            found = tl.sum(masses, 0)
            enough = found >= target
            mass = tl.where(enough, found, mass)
            low = tl.where(enough, low, middle + 1)
            high = tl.where(enough, middle, high)
    tl.store(cutoff_out + row, high.to(tl.float32, bitcast=True))
    tl.store(mass_out + row, mass)


@jit
def draw_kernel(
    logits: tl.pointer_type,
    temperature: tl.pointer_type,
    seed: tl.pointer_type,
    step: tl.pointer_type,
    best_logit: tl.pointer_type,
    best_token: tl.pointer_type,
    cutoff: tl.pointer_type,
    out: tl.pointer_type,
    vocab: int,
    stride: int,
    BLOCK: tl.constexpr,
) -> None:
    """One token of one row. Grid (rows)."""
    row = tl.program_id(0).to(tl.int64)
    limit = tl.load(cutoff + row)
    if limit < 0.0:
        tl.store(out + row, tl.load(best_token + row).to(tl.int64))
        return
    best = tl.load(best_logit + row)
    cold = 1.0 / tl.load(temperature + row)
    key, count = tl.load(seed + row), tl.load(step + row)
    lane = tl.arange(0, BLOCK)
    lane_best = tl.full([BLOCK], float("-inf"), tl.float32)
    lane_token = tl.zeros([BLOCK], tl.int32)
    for first in range(0, vocab, BLOCK):
        token = first + lane
        x = tl.load(logits + row * stride + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
        d = (best - x) * cold
        score = -d - tl.log(exponential(key, token, count, STREAM))
        score = tl.where((d <= limit) & (token < vocab), score, float("-inf"))
        lane_token = tl.where(score > lane_best, token, lane_token)
        lane_best = tl.maximum(lane_best, score)
    winner = tl.max(lane_best, 0)
    tl.store(out + row, tl.min(tl.where(lane_best == winner, lane_token, vocab), 0).to(tl.int64))


@jit
def probabilities_kernel(
    logits: tl.pointer_type,
    temperature: tl.pointer_type,
    best_logit: tl.pointer_type,
    best_token: tl.pointer_type,
    cutoff: tl.pointer_type,
    mass: tl.pointer_type,
    out: tl.pointer_type,
    vocab: int,
    stride: int,
    out_stride: int,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK probabilities of one row. Grid (rows, vocab / BLOCK rounded up)."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    limit = tl.load(cutoff + row)
    x = tl.load(logits + row * stride + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    if limit < 0.0:
        share = (token == tl.load(best_token + row)).to(tl.float32)
    else:
        d = (tl.load(best_logit + row) - x) * (1.0 / tl.load(temperature + row))
        share = tl.where(d <= limit, tl.exp(-d), 0.0) / tl.load(mass + row)
    tl.store(out + row * out_stride + token, share, mask=token < vocab)


def sample(logits: torch.Tensor, parameters: SamplingParameters, out: torch.Tensor | None = None) -> torch.Tensor:
    """A token a row, i64[rows].

    Args:
        logits: [rows, vocab], f32, f16 or bf16, last axis contiguous; a row has a finite logit and no NaN.
        parameters: of each row.
        out: where to write, i64[rows]; made if None.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    _check(logits, parameters)
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device) if out is None else out
    check_tensor("out", out, (len(logits),), (torch.int64,), logits.device)
    if not len(logits):
        return out
    limits = _limits(logits, parameters)
    draw_kernel[(len(logits),)](
        logits,
        parameters.temperature,
        parameters.seed,
        parameters.step,
        limits.best,
        limits.token,
        limits.cutoff,
        out,
        logits.shape[1],
        logits.stride(0),
        BLOCK=BLOCK_TOKENS,
        num_warps=WARPS,
    )
    return out


def sampling_probabilities(
    logits: torch.Tensor, parameters: SamplingParameters, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The distribution that `sample` draws from, f32[rows, vocab]; seed and step play no part. Raises as `sample`."""
    _check(logits, parameters)
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device) if out is None else out
    check_tensor("out", out, tuple(logits.shape), (torch.float32,), logits.device)
    if not len(logits):
        return out
    limits = _limits(logits, parameters)
    probabilities_kernel[(len(logits), triton.cdiv(logits.shape[1], BLOCK_TOKENS))](
        logits,
        parameters.temperature,
        limits.best,
        limits.token,
        limits.cutoff,
        limits.mass,
        out,
        logits.shape[1],
        logits.stride(0),
        out.stride(0),
        BLOCK=BLOCK_TOKENS,
        num_warps=WARPS,
    )
    return out


def sampling_probabilities_reference(logits: torch.Tensor, parameters: SamplingParameters) -> torch.Tensor:
    """The same in float64, by sorting: f64[rows, vocab]."""
    out = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
    for row, x in enumerate(logits.double()):
        heat, top_k = float(parameters.temperature[row]), int(parameters.top_k[row])
        if heat < GREEDY_BELOW:
            out[row, int((x == x.max()).nonzero()[0])] = 1.0
            continue
        scaled = x / heat
        chances = torch.softmax(scaled, dim=0)
        kept = chances >= float(parameters.min_p[row]) * chances.max()
        if 0 < top_k < len(x):
            kept &= scaled >= scaled.sort(descending=True).values[top_k - 1]
        chances = torch.where(kept, chances, 0.0)
        chances /= chances.sum()
        if float(parameters.top_p[row]) < 1:
            ordered = chances.sort(descending=True).values
            before = ordered.cumsum(0) - ordered
            least = ordered[before < float(parameters.top_p[row])].min() if float(parameters.top_p[row]) > 0 else 1.0
            chances = torch.where(chances >= min(float(least), float(ordered[0])), chances, 0.0)
        out[row] = chances / chances.sum()
    return out


def sample_reference(logits: torch.Tensor, parameters: SamplingParameters) -> torch.Tensor:
    """The same tokens from float64 probabilities, i64[rows]; they may differ where two scores are equal in f32."""
    chances = sampling_probabilities_reference(logits, parameters)
    tokens = torch.arange(logits.shape[1])
    noise = [
        exponential_reference(seed, tokens, step, SAMPLING)
        for seed, step in zip(parameters.seed.tolist(), parameters.step.tolist(), strict=True)
    ]
    return (chances.cpu() / torch.stack(noise)).argmax(dim=1).to(logits.device)


def _limits(logits: torch.Tensor, parameters: SamplingParameters) -> Limits:
    rows, device = len(logits), logits.device
    best, cutoff, mass = torch.empty((3, rows), dtype=torch.float32, device=device)
    limits = Limits(best, torch.empty(rows, dtype=torch.int32, device=device), cutoff, mass)
    sampling_limits_kernel[(rows,)](
        logits,
        parameters.temperature,
        parameters.top_k,
        parameters.top_p,
        parameters.min_p,
        *limits,
        logits.shape[1],
        logits.stride(0),
        BLOCK=BLOCK_TOKENS,
        num_warps=WARPS,
    )
    return limits


def _check(logits: torch.Tensor, parameters: SamplingParameters) -> None:
    check_tensor("logits", logits, (None, None), FLOATS, logits.device)
    if not logits.shape[1]:
        raise ValueError("logits: a vocabulary of 0 tokens; at least 1 is expected")
    dtypes = {"top_k": torch.int32, "seed": torch.int64, "step": torch.int32}
    for name, tensor in parameters._asdict().items():
        wanted = dtypes.get(name, torch.float32)
        check_tensor(f"parameters.{name}", tensor, (len(logits),), (wanted,), logits.device)
    check_can_launch("logits", logits, draw_kernel)
