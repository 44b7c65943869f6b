"""A planned batch as the kernels' decoder reads it: decodes first, then chunks, in one transfer to the device."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.engine.state import I32, I64
from simkit.kernels.step_batch import StepBatch
from simkit.testbed.inputs import Fed, StepInputs
from simkit.testbed.torch_import import torch

# Triton compiles a kernel anew for a pointer or a stride that is not a multiple of 16 where it was before
ALIGNED_BYTES = 16
PAGES_STEP = 16


class HostBatch(NamedTuple):
    """The arrays of a `StepBatch`, still on the host."""

    tokens: I64  # [t]
    positions: I64  # [t]
    slots: I64  # [t]
    sampled: I64  # [rows] in the order of the step's own rows
    query_starts: I32  # [r + 1]
    page_table: I32  # [r, most pages]
    context_tokens: I32  # [r]
    decodes: int
    max_query_tokens: int
    max_decode_context_tokens: int
    max_context_tokens: int
    fed: Fed  # tokens of the step before, by their places here


def host_batch(step: StepInputs) -> HostBatch:
    """The step with its decodes first; rows that sample keep their order."""
    chunks = step.chunks
    order = np.concatenate([step.decodes.rows, *(np.arange(c.first, c.first + c.tokens) for c in chunks)])
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    decodes = len(step.decodes.rows)
    contexts = np.concatenate([step.decodes.context, [c.past + c.tokens for c in chunks]]).astype(np.int32)
    pages = max(step.decodes.blocks.shape[1], max((len(c.blocks) for c in chunks), default=0))
    pages = -(-pages // PAGES_STEP) * PAGES_STEP
    table = np.zeros((decodes + len(chunks), pages), dtype=np.int32)
    table[:decodes, : step.decodes.blocks.shape[1]] = step.decodes.blocks
    for row, chunk in enumerate(chunks, start=decodes):
        table[row, : len(chunk.blocks)] = chunk.blocks
    return HostBatch(
        tokens=step.tokens[order],
        positions=step.positions[order],
        slots=step.slots[order],
        sampled=place[step.sampled],
        query_starts=np.cumsum([0, *[1] * decodes, *(c.tokens for c in chunks)]).astype(np.int32),
        page_table=table,
        context_tokens=contexts,
        decodes=decodes,
        max_query_tokens=max((c.tokens for c in chunks), default=0),
        max_decode_context_tokens=int(contexts[:decodes].max(initial=0)),
        max_context_tokens=int(contexts.max(initial=0)),
        fed=Fed(place[step.fed.rows], step.fed.samples),
    )


def padded_decodes(step: StepInputs, size: int, pages: int, longest: int) -> HostBatch:
    """A step of decodes alone, filled up to `size` requests and `pages` pages, for a graph of that shape.

    A request that fills up has no context and writes to block 0, which is nobody's. The longest context is stated as
    `longest` whatever it is, because a captured launch stays as it was.
    """
    batch = host_batch(step)
    n = len(batch.tokens)
    table = np.zeros((size, max(pages, batch.page_table.shape[1])), dtype=np.int32)
    table[:n, : batch.page_table.shape[1]] = batch.page_table
    more = (0, size - n)
    return HostBatch(
        tokens=np.pad(batch.tokens, more),
        positions=np.pad(batch.positions, more),
        slots=np.pad(batch.slots, more),
        sampled=np.arange(size, dtype=np.int64),
        query_starts=np.arange(size + 1, dtype=np.int32),
        page_table=table,
        context_tokens=np.pad(batch.context_tokens, more),
        decodes=size,
        max_query_tokens=0,
        max_decode_context_tokens=longest,
        max_context_tokens=longest,
        fed=batch.fed,
    )


def packed(batch: HostBatch) -> torch.Tensor:
    """The arrays of a step behind each other as bytes, each aligned, so that one copy brings them over."""
    parts = [np.ascontiguousarray(array).view(np.uint8).ravel() for array in batch[:7]]
    return torch.from_numpy(np.concatenate([np.pad(part, (0, -len(part) % ALIGNED_BYTES)) for part in parts]))


def unpacked(batch: HostBatch, data: torch.Tensor) -> StepBatch:
    """The batch with its arrays as views of what `packed` made, wherever that is now."""
    views, first = [], 0
    for array in batch[:7]:
        size = array.nbytes
        kind = torch.int64 if array.dtype == np.int64 else torch.int32
        views.append(data[first : first + size].view(kind).view(array.shape))
        first += size + -size % ALIGNED_BYTES
    tokens, positions, slots, sampled, query_starts, page_table, context_tokens = views
    return StepBatch(
        tokens=tokens,
        positions=positions,
        slots=slots,
        query_starts=query_starts,
        page_table=page_table,
        context_tokens=context_tokens,
        sampled=sampled,
        samplers=(),
        decodes=batch.decodes,
        max_query_tokens=batch.max_query_tokens,
        max_decode_context_tokens=batch.max_decode_context_tokens,
        max_context_tokens=batch.max_context_tokens,
    )


def capture_for(sizes: Sequence[int], requests: int) -> int | None:
    """The smallest of the ascending `sizes` that holds so many requests; None where none does."""
    places: NDArray[np.int64] = np.asarray(sizes, dtype=np.int64)
    index = int(np.searchsorted(places, requests))
    return int(places[index]) if index < len(places) else None
