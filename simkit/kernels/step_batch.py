"""A step's batch as a decoder's kernels read it: token ids, positions, cache slots, page tables.

The scheduler gives each request some of the tokens it is due, after those it has computed; a prompt's chunk and a
decode differ in their number alone. Requests stand in the order of `mixed_attention.decodes_first`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from simkit.kernels.mixed_attention import decodes_first


class Share(NamedTuple):
    """What a step computes of one request."""

    tokens: Sequence[int]  # ids of its new tokens, at least one
    past_tokens: int  # that are in its pages already
    pages: Sequence[int]  # its pages, in the order of its tokens; those of the new tokens included
    samples: bool  # whether its last token's logits are wanted


class StepBatch(NamedTuple):
    """t tokens of r requests."""

    tokens: torch.Tensor  # i64[t]
    positions: torch.Tensor  # i64[t]
    slots: torch.Tensor  # i64[t] page * page_tokens + offset
    query_starts: torch.Tensor  # i32[r + 1]
    page_table: torch.Tensor  # i32[r, most pages]
    context_tokens: torch.Tensor  # i32[r] the new tokens included
    sampled: torch.Tensor  # i64[rows] tokens whose logits are wanted
    samplers: tuple[int, ...]  # the request of each of those rows, as an index into the shares
    decodes: int  # requests at the beginning with one token each
    max_query_tokens: int  # of the others
    max_decode_context_tokens: int
    max_context_tokens: int  # of all


def step_batch(shares: Sequence[Share], page_tokens: int, device: torch.device) -> StepBatch:
    """The batch of a step.

    Raises:
        ValueError: a share without tokens, or with more than its pages hold.
    """
    for index, share in enumerate(shares):
        new, past, pages = len(share.tokens), share.past_tokens, len(share.pages)
        if not new or past < 0:
            raise ValueError(f"shares[{index}]: {new} tokens after {past}; 1 or more after 0 or more are expected")
        if past + new > pages * page_tokens:
            raise ValueError(f"shares[{index}]: {past + new} tokens; its {pages} pages of {page_tokens} hold fewer")
    order, decodes = decodes_first([len(share.tokens) for share in shares])
    ordered = [shares[index] for index in order]
    tokens, positions, slots, starts = [], [], [], [0]
    for share in ordered:
        tokens += list(share.tokens)
        own = range(share.past_tokens, share.past_tokens + len(share.tokens))
        positions += list(own)
        slots += [share.pages[t // page_tokens] * page_tokens + t % page_tokens for t in own]
        starts.append(starts[-1] + len(share.tokens))
    contexts = [share.past_tokens + len(share.tokens) for share in ordered]
    table = torch.zeros((len(ordered), max((len(share.pages) for share in ordered), default=0)), dtype=torch.int32)
    for row, share in enumerate(ordered):
        table[row, : len(share.pages)] = torch.tensor(share.pages, dtype=torch.int32)
    samplers = [row for row, share in enumerate(ordered) if share.samples]
    return StepBatch(
        tokens=torch.tensor(tokens, dtype=torch.int64).to(device),
        positions=torch.tensor(positions, dtype=torch.int64).to(device),
        slots=torch.tensor(slots, dtype=torch.int64).to(device),
        query_starts=torch.tensor(starts, dtype=torch.int32).to(device),
        page_table=table.to(device),
        context_tokens=torch.tensor(contexts, dtype=torch.int32).to(device),
        sampled=torch.tensor([starts[row + 1] - 1 for row in samplers], dtype=torch.int64).to(device),
        samplers=tuple(order[row] for row in samplers),
        decodes=decodes,
        max_query_tokens=max((len(share.tokens) for share in ordered[decodes:]), default=0),
        max_decode_context_tokens=max(contexts[:decodes], default=0),
        max_context_tokens=max(contexts, default=0),
    )
