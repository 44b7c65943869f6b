"""What the device needs to run a planned batch: token ids, positions, cache slots and block tables."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from simkit.engine.state import I64, Replica


class Span(NamedTuple):
    """Consecutive tokens of one request that a step computes."""

    request: int
    tokens: int
    before: int  # computed before
    samples: int  # of the last so many tokens the output is wanted


class Decodes(NamedTuple):
    """The n requests with one new token in the step."""

    rows: I64  # [n] where their token stands in the step
    blocks: I64  # [n, most blocks] their block tables, padded with block 0
    context: I64  # [n] tokens to attend to, the new one included


class Chunk(NamedTuple):
    """One request with several new tokens: a prefill chunk, drafts to check, or the recomputation of one preempted."""

    first: int  # where its tokens begin in the step
    tokens: int
    past: int  # tokens it computed before
    blocks: I64  # [blocks] its block table, as far as these tokens reach


class Fed(NamedTuple):
    """The f tokens that the step before, still under way, samples: known on the device alone, placeholders here."""

    rows: I64  # [f] where they stand in the step
    samples: I64  # [f] which of the tokens that the step before samples


_NONE = np.zeros(0, dtype=np.int64)
NOTHING_FED = Fed(_NONE, _NONE)


class StepInputs(NamedTuple):
    """A batch of t tokens, request after request."""

    tokens: I64  # [t] ids
    positions: I64  # [t] in their request
    slots: I64  # [t] where their keys and values go: block * block_size + offset
    decodes: Decodes
    chunks: tuple[Chunk, ...]
    sampled: I64  # rows, of [t], whose output becomes a token or checks a draft
    fed: Fed = NOTHING_FED


def planned_spans(replica: Replica, row: int) -> list[Span]:
    """The batch that `plan` put in `row`."""
    return [Span(*entry) for entry in replica.entries[row, : int(replica.batches["length"][row])].tolist()]


def spans_to_compute(replica: Replica, row: int) -> list[Span]:
    """The same, until its tokens are delivered, without empty drafts (`simkit.engine.drafts`): no work."""
    spans = planned_spans(replica, row)
    if replica.limits.speculative_tokens == 0:
        return spans
    known = replica.progress["known"]
    return [
        span._replace(tokens=min(span.tokens, int(known[span.request]) - span.before)) if span.samples == 1 else span
        for span in spans
    ]


def step_inputs(
    replica: Replica, spans: Sequence[Span], known: Sequence[I64], under_way: Mapping[int, int] | None = None
) -> StepInputs:
    """The inputs of a batch of at least one span; `known[request]` holds its tokens, prompt, outputs and drafts.

    Every request must hold the blocks that its tokens reach. `under_way` says of each request that samples in the step
    before, whose tokens are not known yet, which sample is its own.
    """
    size = replica.limits.block_size
    tokens, positions, slots, chunks = [], [], [], []
    sampled: list[int] = []
    fed: list[tuple[int, int]] = []
    decodes: list[tuple[int, I64, int]] = []
    first = 0
    for request, new, before, samples in spans:
        position = np.arange(before, before + new)
        reach = -(-(before + new) // size)
        blocks = replica.pool.table[replica.progress["slot"][request], :reach].astype(np.int64)
        tokens.append(known[request][before : before + new])
        positions.append(position)
        slots.append(blocks[position // size] * size + position % size)
        if new == 1:
            decodes.append((first, blocks, before + 1))
        else:
            chunks.append(Chunk(first, new, before, blocks))
        first += new
        if under_way is not None and before + new > replica.progress["known"][request]:
            fed.append((first - 1, under_way[request]))
        sampled.extend(range(first - samples, first))
    return StepInputs(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions),
        slots=np.concatenate(slots),
        decodes=_padded(decodes),
        chunks=tuple(chunks),
        sampled=np.array(sampled, dtype=np.int64),
        fed=Fed(*np.array(fed, dtype=np.int64).reshape(-1, 2).T) if fed else NOTHING_FED,
    )


def _padded(decodes: list[tuple[int, I64, int]]) -> Decodes:
    """Decodes side by side; a shorter block table is filled with block 0, whose tokens nobody attends to."""
    blocks = np.zeros((len(decodes), max((len(b) for _, b, _ in decodes), default=0)), dtype=np.int64)
    for i, (_, held, _) in enumerate(decodes):
        blocks[i, : len(held)] = held
    return Decodes(
        rows=np.array([row for row, _, _ in decodes], dtype=np.int64),
        blocks=blocks,
        context=np.array([context for _, _, context in decodes], dtype=np.int64),
    )
