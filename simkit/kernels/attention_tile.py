"""The steps that all attention kernels here take with a tile of scores; each becomes part of the kernel that calls it.

Scores are f32 and in base 2: log2(e) is folded into the scale, the cap, the slopes and the sinks, so that `exp2`, which
the hardware has, stands for `exp`. A pointer or number that is None leaves its feature out of the compiled code.
"""

import math

import triton.language as tl

from simkit.kernels.jit import inlined

LOG2_E = tl.constexpr(math.log2(math.e))


@inlined
def load_scale(scale: tl.pointer_type, stride: int, kv_head: int):  # type: ignore[no-untyped-def]
    """A key-value head's scale, 1 without one."""
    return 1.0 if scale is None else tl.load(scale + kv_head * stride)


@inlined
def load_slopes(slopes: tl.pointer_type, head: tl.tensor, head_ok: tl.tensor):  # type: ignore[no-untyped-def]
    """ALiBi slopes of the rows' heads, f32[rows] in base 2, or None."""
    loaded = None
    if slopes is not None:
        loaded = tl.load(slopes + head, mask=head_ok, other=0.0) * LOG2_E
    return loaded


@inlined
def capped(scores: tl.tensor, soft_cap_log2: float):  # type: ignore[no-untyped-def]
    """cap * tanh(scores / cap); tanh x = 1 - 2 / (e^(2x) + 1) neither over- nor underflows into NaN."""
    if soft_cap_log2 is not None:
        scores = soft_cap_log2 * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2_E / soft_cap_log2)) + 1.0))
    return scores


@inlined
def biased(scores: tl.tensor, slopes: tl.tensor, ahead: tl.tensor):  # type: ignore[no-untyped-def]
    """Scores less slope * |t - p|; `ahead` is t - p, of the scores' shape or one that becomes it."""
    if slopes is not None:
        scores = scores - slopes[:, None] * tl.abs(ahead).to(tl.float32)
    return scores


@inlined
def softmax_start(  # type: ignore[no-untyped-def]
    sinks: tl.pointer_type, head: tl.tensor, head_ok: tl.tensor, counted: tl.tensor, ROWS: tl.constexpr
):
    """Where an online softmax begins: the largest score so far and the sum of weights, f32[ROWS] each.

    That is nothing, or the rows' sinks where they are `counted`, in one of the parts of a context.
    """
    if sinks is None:
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
    else:
        sink = tl.load(sinks + head, mask=head_ok, other=0.0) * LOG2_E
        best = tl.where(counted, sink, float("-inf"))
        total = tl.where(counted, 1.0, tl.zeros([ROWS], tl.float32))
    return best, total


@inlined
def fold(  # type: ignore[no-untyped-def]
    best: tl.tensor, total: tl.tensor, acc: tl.tensor, scores: tl.tensor, values: tl.tensor, BLIND: tl.constexpr
):
    """A tile added to an online softmax: largest score, and relative to it the sum of weights and of weighted values.

    BLIND: a row may have seen no key yet, so that its largest score is -inf, and -inf - -inf must not be taken.
    """
    new_best = tl.maximum(best, tl.max(scores, 1))
    base = tl.where(new_best == float("-inf"), 0.0, new_best) if BLIND else new_best
    shrink = tl.exp2(best - base)
    weight = tl.exp2(scores - base[:, None])
    total = total * shrink + tl.sum(weight, 1)
    acc = acc * shrink[:, None] + tl.dot(weight.to(values.dtype), values, input_precision="ieee")
    return new_best, total, acc
