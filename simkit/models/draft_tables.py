"""What a draft's passes add to a step, in the tables that the engine replays.

To propose k tokens vLLM runs a draft k times after each step of the target, whether that checked drafts or not
(`SpecDecodeBaseProposer.propose`): over all tokens of the step, then k - 1 times over one token of each of its
requests, each time with the draft's attention, lm_head and an argmax. The time of that by the laws that time the
target's own step goes

- to the tables by tokens, by decodes and by chunks: the first pass, and the attention of the others, each over the
  contexts as the step has them (of k + 1 tokens that it checks, those that are not accepted make up for those that the
  passes add);
- to `draft_ns` by requests: the other passes' linear layers, and k times the head.

What that leaves out: the token more of each request that a draft model reads than the target; in steps of prompts alone
the fixed time of the later passes' attention (10 us a layer); and what the host takes between passes
(docs/models.md, Drafts, compares with measured steps).
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.models.captures import padded_tokens
from simkit.models.draft import Draft
from simkit.models.layout import Layout
from simkit.models.operators import F64, Operator, counted, linear_operators, lm_head, logits_gathers
from simkit.models.precision import Precision
from simkit.models.step_law import EXPERTS, StepLaw, TableSizes, decode_ns, launched_ns, prefill_ns, sum_ns
from simkit.models.steptables import NO_SHARES, StepTables, grid_values

I64 = NDArray[np.int64]


class DraftPass(NamedTuple):
    """One run of a draft, in ns: over a step's tokens, and over a token of each of its requests."""

    first: StepTables  # `sample_ns` is the head's, `prefill_ns` of the step's own chunks
    later_ns: F64  # [max_requests + 1] by requests: linear layers of a run after the first
    behind_ns: F64  # [grid(chunk), grid(past)] attention of a later run behind a chunk, without its fixed time


def draft_pass(
    tables: StepTables,
    law: StepLaw,
    draft: Draft,
    layout: Layout,
    sizes: TableSizes,
    kv: Precision,
) -> DraftPass:
    """A run of a draft, over the axes of the target's tables.

    Args:
        tables: of the target.
        law: that times operators of the draft's architecture.
        draft: whose run it is.
        layout: the target's.
        sizes: of `tables`; only captures and `enforce_eager` are read.
        kv: precision of the KV cache, the draft's too.
    """
    own = draft.layout(layout)
    arch = replace(draft.architecture, layers=draft.layers_within({tables.window_tokens}))
    # runs follow one another without the engine's pause; what a chunk costs beside its kernels, the target's has paid
    law = replace(law, gap_ns=0.0, chunk_ns=0.0)
    tokens, rows = np.arange(len(tables.linear_ns)), np.arange(len(tables.sample_ns))
    chunk, past = _axes(tables.prefill_ns)
    windowed = np.zeros((0, 0))
    if tables.window_tokens:
        windowed = decode_ns(law, arch, own, *_axes(tables.decode_window_ns), True, kv)
    shared = NO_SHARES
    if len(tables.shared_linear_ns) > 0 and own.data > 1:
        padded = padded_tokens(tokens, sizes.captures()).astype(np.float64)
        experts = [part for part in pass_operators(draft, own, padded, kv, first=True) if part.name in EXPERTS]
        shared = sum_ns(law, experts, padded.shape)
    first = StepTables(
        linear_ns=np.maximum.accumulate(_linear_ns(law, draft, own, tokens, sizes, kv, first=True)),
        sample_ns=sum_ns(law, head_operators(draft, own, rows.astype(np.float64)), rows.shape),
        host_ns=np.zeros(len(rows)),
        decode_ns=decode_ns(law, arch, own, *_axes(tables.decode_ns), False, kv),
        decode_window_ns=windowed,
        prefill_ns=prefill_ns(law, arch, own, chunk, past, kv),
        window_tokens=tables.window_tokens,
        shared_linear_ns=shared,
    )
    one = np.ones(())
    behind = decode_ns(law, arch, own, one, past + chunk, False, kv) - decode_ns(
        law, arch, own, one, 0 * one, False, kv
    )
    return DraftPass(
        first,
        later_ns=_linear_ns(law, draft, own, rows, sizes, kv, first=False),
        behind_ns=np.where(chunk > 0, np.maximum(behind, 0.0), 0.0),
    )


def with_draft(tables: StepTables, run: DraftPass, speculative_tokens: int) -> StepTables:
    """The target's tables with the runs of a draft that proposes so many tokens."""
    passes, first = float(speculative_tokens), run.first
    rows = np.arange(len(first.sample_ns))
    found = tables._replace(
        linear_ns=tables.linear_ns + first.linear_ns,
        decode_ns=tables.decode_ns + passes * first.decode_ns,
        decode_window_ns=tables.decode_window_ns + passes * first.decode_window_ns,
        prefill_ns=tables.prefill_ns + first.prefill_ns + (passes - 1) * run.behind_ns,
        draft_ns=np.where(rows > 0, (passes - 1) * run.later_ns + passes * first.sample_ns, 0.0),
    )
    if len(tables.alone_ns) > 0 and len(first.alone_ns) > 0:
        found = found._replace(alone_ns=tables.alone_ns + passes * first.alone_ns)
    if len(first.shared_linear_ns) > 0:
        found = found._replace(shared_linear_ns=tables.shared_linear_ns + first.shared_linear_ns)
    if len(tables.stage_linear_ns) > 0:
        stages = tables.stage_linear_ns.copy()
        stages[-1] += first.linear_ns
        found = found._replace(stage_linear_ns=stages)
    return found


def pass_operators(draft: Draft, layout: Layout, tokens: F64, kv: Precision, first: bool) -> list[Operator]:
    """A pass over `tokens` (f64[n]) tokens without attention and head; `first`: over a step's own tokens."""
    arch = draft.architecture
    found = linear_operators(arch, layout, tokens, draft.weights, kv)
    if draft.fc_width and (first or draft.fc_each_pass):
        # copied to all GPUs, at 16 bits
        found.append(_product("fc", 1, tokens, float(draft.fc_width), float(arch.hidden), 2.0))
    if draft.wide_attention:
        # the other half of what the same product reads: no launch of its own, and nothing more written
        width, bytes_each = float(draft.wide_outputs(layout.tensor)), arch.weight_bits("attention", draft.weights) / 8
        half = _product("qkv_embedding", 0, tokens, float(arch.hidden), width, bytes_each)
        found.append(replace(half, group="attention", written_bytes=np.zeros_like(tokens)))
    return found


def head_operators(draft: Draft, layout: Layout, rows: F64) -> list[Operator]:
    """The logits of `rows` (f64[n]) tokens and their argmax: drafts are greedy (vLLM `_greedy_sample`).

    Of a reduced vocabulary they are first spread over the whole one.
    """
    arch = replace(draft.architecture, vocab=draft.head_vocab)
    whole, scored = 2.0 * rows * draft.architecture.vocab, 2.0 * rows * draft.head_vocab
    found = [lm_head(arch, layout, rows), *logits_gathers(arch, layout, rows)]
    if draft.head_vocab < draft.architecture.vocab:
        found.append(counted("spread", "elementwise", 2, rows, read=scored, written=whole + scored))
    return [*found, counted("argmax", "elementwise", 1, rows, read=whole)]


def _product(name: str, launches: int, tokens: F64, inner: float, outer: float, bytes_each: float) -> Operator:
    return counted(
        name,
        "gemm",
        launches,
        tokens,
        flops=2.0 * tokens * inner * outer,
        weights=np.where(tokens > 0, inner * outer * bytes_each, 0.0),
        read=2.0 * tokens * inner,
        written=2.0 * tokens * outer,
    )


def _linear_ns(
    law: StepLaw, draft: Draft, layout: Layout, tokens: I64, sizes: TableSizes, kv: Precision, first: bool
) -> F64:
    layers = len(draft.layers)
    total = launched_ns(law, lambda padded: pass_operators(draft, layout, padded, kv, first), layers, tokens, sizes)
    return np.where(tokens > 0, total, 0.0)


def _axes(table: F64) -> tuple[F64, F64]:
    """The values of a table's two axes, to be broadcast."""
    rows, columns = (grid_values(1 << 62)[:size].astype(np.float64) for size in table.shape)
    return rows[:, None], columns[None, :]
