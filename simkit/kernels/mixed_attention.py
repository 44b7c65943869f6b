"""Attention of a whole step: some requests decode one token, others bring chunks of prompts.

A step gives each of its requests some query tokens. Requests with one, decodes and last tokens of prompts alike, stand
first (`decodes_first` orders them) and go to the decode kernel, which splits contexts; the rest go to the prefill
kernel, whose tiles of many rows a single token would leave empty. Both write parts of one output. The math is that of
causal attention, in `paged_decode` and `paged_prefill`; one token is a chunk of one.

Source: decodes first and two launches, as vLLM's `split_decodes_and_prefills` has it.
"""

from collections.abc import Sequence

import torch

from simkit.kernels.arguments import FLOATS, check_at_least, check_tensor
from simkit.kernels.attention_features import PLAIN, AttentionFeatures
from simkit.kernels.paged_cache import PagedCache
from simkit.kernels.paged_decode import paged_decode
from simkit.kernels.paged_prefill import paged_prefill, paged_prefill_reference


def decodes_first(query_tokens: Sequence[int]) -> tuple[list[int], int]:
    """The order in which a step's requests stand, as indices into it, and how many of the first bring one token.

    Otherwise they stay as they are, those that bring none last.
    """
    rank = {1: 0, 0: 2}
    order = sorted(range(len(query_tokens)), key=lambda i: rank.get(query_tokens[i], 1))
    return order, sum(tokens == 1 for tokens in query_tokens)


def mixed_attention(
    q: torch.Tensor,
    query_starts: torch.Tensor,
    cache: PagedCache,
    decodes: int,
    max_query_tokens: int,
    max_context_tokens: int,
    scale: float | None = None,
    out: torch.Tensor | None = None,
    features: AttentionFeatures = PLAIN,
) -> torch.Tensor:
    """Causal attention of a step's tokens over their contexts, [tokens, q_heads, head_dim] of q's dtype.

    Args:
        q: [tokens, q_heads, head_dim], f32, f16 or bf16, last axis contiguous; token i of the first `decodes` is
            request i's.
        query_starts: i32[requests + 1], ascending from 0 to tokens; query_starts[i] = i up to `decodes`.
        cache: keys and values of all requests, the step's own included, see `PagedCache`.
        decodes: requests at the beginning that bring one token each, known to the host.
        max_query_tokens: at least the longest chunk of the others; 0 where there are none.
        max_context_tokens: at least the longest context of the decodes; 0 where there are none.
        scale: of the scores; head_dim ** -0.5 if None.
        out: where to write, of q's shape and dtype; made if None. Rows of no request are left alone.
        features: what the layer adds to attention.

    Raises:
        ValueError: naming the argument whose shape, dtype, stride or device is off. Nothing is launched then.
    """
    check_tensor("q", q, (None, None, None), FLOATS, q.device)
    check_tensor("query_starts", query_starts, (None,), (torch.int32,), q.device)
    check_at_least("decodes", decodes, 0)
    requests = len(query_starts) - 1
    if decodes > min(requests, len(q)):
        raise ValueError(
            f"decodes: is {decodes}; at most {min(requests, len(q))}, of {requests} requests, are expected"
        )
    check_at_least("max_context_tokens", max_context_tokens, 0)
    for name in ("page_table", "context_tokens"):
        if len(getattr(cache, name)) != requests:
            found = len(getattr(cache, name))
            raise ValueError(f"cache.{name}: is of {found} requests; query_starts' {requests} are expected")
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    check_tensor("out", out, tuple(q.shape), (q.dtype,), q.device)
    # the prefill launcher checks all that both share, so it goes first
    others = cache.requests(slice(decodes, None))
    paged_prefill(q, query_starts[decodes:], others, max_query_tokens, scale, out, features)
    single = cache.requests(slice(None, decodes))
    paged_decode(q[:decodes], single, max_context_tokens, scale, None, out[:decodes], features)
    return out


def mixed_attention_reference(
    q: torch.Tensor,
    query_starts: torch.Tensor,
    cache: PagedCache,
    scale: float | None = None,
    features: AttentionFeatures = PLAIN,
) -> torch.Tensor:
    """The same in float64: every request is a chunk, f64[tokens, q_heads, head_dim]."""
    return paged_prefill_reference(q, query_starts, cache, scale, features)
