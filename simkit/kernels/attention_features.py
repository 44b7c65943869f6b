"""What a model may add to attention, in all attention kernels here: its math, its checks, and its dense float64 form.

For a query at position p, head h, and a key at position t, with scores s = scale * q . k:

    soft-cap        s <- cap * tanh(s / cap)                                Gemma 2 (2024), section 2
    ALiBi           s <- s + slope[h] * (t - p), -slope[h] * |t - p| where attention looks both ways
                                                                            Press et al. (2022); Bloom, MPT
    sliding window  the key is seen only if p - t < window (|p - t| < window where attention looks both ways)
                                                                            Mistral 7B (2023), section 2
    sink            softmax over the scores and one more, sink[h], whose weight multiplies no value
                                                                            gpt-oss (2025), `sinks` in its attention

in this order, which is that of vLLM's `triton_unified_attention.py`. A kernel is compiled for those that are there.
"""

from typing import Literal, NamedTuple

import torch

from simkit.kernels.arguments import check_at_least, check_tensor

Mask = Literal["causal", "bidirectional", "cross"]


class AttentionFeatures(NamedTuple):
    """The additions of a layer; None: without."""

    window_tokens: int | None = None  # keys a query sees, its own included
    soft_cap: float | None = None
    alibi_slopes: torch.Tensor | None = None  # f32[q_heads]
    sinks: torch.Tensor | None = None  # f32[q_heads], of the size of scores


PLAIN = AttentionFeatures()


def check_features(features: AttentionFeatures, q_heads: int, mask: Mask, device: torch.device) -> None:
    """Features that fit the queries and the mask; ValueError names what is off."""
    if features.window_tokens is not None:
        check_at_least("features.window_tokens", features.window_tokens, 1)
    if features.soft_cap is not None and not 0.0 < features.soft_cap < float("inf"):
        raise ValueError(f"features.soft_cap: is {features.soft_cap}; a finite number above 0 is expected")
    for name in ("alibi_slopes", "sinks"):
        tensor = getattr(features, name)
        if tensor is not None:
            check_tensor(f"features.{name}", tensor, (q_heads,), (torch.float32,), device)
    for name in ("window_tokens", "alibi_slopes"):
        if mask == "cross" and getattr(features, name) is not None:
            raise ValueError(f"features.{name}: keys of another sequence have no distance; None is expected")


def attention_reference(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: torch.Tensor,
    scale: float | None = None,
    features: AttentionFeatures = PLAIN,
    mask: Mask = "causal",
) -> torch.Tensor:
    """Dense attention of one sequence in float64, f64[queries, q_heads, value_dim]; 0 for a query that sees no key.

    Args:
        q: [queries, q_heads, head_dim].
        keys: [tokens, kv_heads, head_dim], at positions 0, 1, ...
        values: [tokens, kv_heads, value_dim].
        position: i64[queries], of each query; not looked at with mask `cross`.
        scale: of the scores; head_dim ** -0.5 if None.
        features: what the layer adds.
        mask: which keys a query sees: those up to its own (`causal`), or all.
    """
    queries, q_heads, head_dim = q.shape
    tokens, kv_heads = keys.shape[:2]
    keys, values = (x.double().repeat_interleave(q_heads // kv_heads, 1) for x in (keys, values))
    scores = torch.einsum("ihd,thd->hit", q.double(), keys) * (head_dim**-0.5 if scale is None else scale)
    if features.soft_cap is not None:
        scores = features.soft_cap * torch.tanh(scores / features.soft_cap)
    ahead = torch.arange(tokens, device=q.device)[None, :] - position[:, None]  # t - p
    if features.alibi_slopes is not None:
        scores = scores - features.alibi_slopes.double()[:, None, None] * ahead.abs()
    seen = torch.ones(queries, tokens, dtype=torch.bool, device=q.device)
    if mask == "causal":
        seen &= ahead <= 0
    if features.window_tokens is not None:
        seen &= ahead.abs() < features.window_tokens
    scores = scores.masked_fill(~seen, float("-inf"))
    if features.sinks is not None:
        scores = torch.cat([scores, features.sinks.double()[:, None, None].expand(q_heads, queries, 1)], dim=2)
    weights = torch.softmax(scores, dim=2)[:, :, :tokens]
    blind = ~seen.any(1)  # no key to see: softmax of nothing is NaN
    return torch.einsum("hit,thd->ihd", weights.masked_fill(blind[None, :, None], 0.0), values)
