"""A deployment's step tables from a profile's operators; what the profile lacks comes from another law, tagged.

The operators of a step are those of `models/operators.py`, so that both ways of timing a step time the same step:

- a GEMM whose precision was not timed is the 16-bit one times the ratio of their rooflines: extrapolated;
- an operator whose family was not timed (elementwise kernels of an imported table, latent attention), and what a step
  costs beside its operators, is that of a `StepLaw`: assumed;
- a step too large for a CUDA graph takes at least its launches.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.operator_attention import decode_parts, prefill_parts
from simkit.calibrate.operator_model import OperatorModel
from simkit.calibrate.operator_steps import linear_parts, sampling_parts
from simkit.calibrate.profiled_step import ProfiledStep
from simkit.calibrate.provenance import Shares, Tag, Times, summed, tagged
from simkit.models.architecture import Architecture
from simkit.models.captures import padded_tokens
from simkit.models.device import Device
from simkit.models.layout import Layout, check_layout
from simkit.models.precision import Precision
from simkit.models.step_law import StepLaw, TableSizes
from simkit.models.steptables import StepTables, grid_values
from simkit.models.table_shares import TableShares

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class ProfiledTables(NamedTuple):
    """The tables and how much of each entry is how well known."""

    tables: StepTables
    known: TableShares


def operator_tables(
    model: OperatorModel,
    arch: Architecture,
    device: Device,
    law: StepLaw,
    layout: Layout | None = None,
    sizes: TableSizes | None = None,
    weights: Precision | None = None,
    kv: Precision = "bf16",
) -> ProfiledTables:
    """The step tables of a deployment.

    Args:
        model: what a profile says.
        arch: the model served.
        device: its datasheet, for ratios between precisions.
        law: times of what the profile lacks (`roofline_law`, `calibrated_law`).
        layout: how the model is spread; one GPU if None.
        sizes: how far the tables reach.
        weights: precision the linear layers are stored in; None as published.
        kv: precision of the KV cache.

    Raises:
        InputError: the layout is impossible.
    """
    step = ProfiledStep(model, arch, device, layout or Layout(), weights, kv, law)
    sizes = sizes or TableSizes()
    check_layout(arch, step.layout)
    seqs, batched = sizes.max_num_seqs, sizes.max_num_batched_tokens
    longest = min(sizes.max_model_len or arch.max_context_tokens, arch.max_context_tokens)
    held = seqs * longest if sizes.kv_tokens is None else min(sizes.kv_tokens, seqs * longest)
    rows = np.arange(seqs + 1, dtype=np.float64)
    window = max((layer.attention.window_tokens or 0 for layer in arch.kinds), default=0)
    linear = _linear(step, np.arange(batched + 1, dtype=np.int64), sizes)
    sample = summed([*sampling_parts(step, rows), tagged(law.row_ns * rows, Tag.ASSUMED)], rows.shape)
    host = summed([_host(step, rows)], rows.shape)
    batch, contexts = _axes(seqs, held)
    decode = summed(decode_parts(step, batch, contexts, False), batch.shape)
    windowed = Shares(np.zeros((0, 0)), np.zeros((len(Tag), 0, 0)))
    if window:
        windowed = summed(decode_parts(step, batch, contexts, True), batch.shape)
    chunk, past = _axes(batched, longest)
    beside = tagged(np.where(chunk > 0, law.chunk_ns, 0.0), Tag.ASSUMED)
    prefill = summed([*prefill_parts(step, chunk, past), beside], chunk.shape)
    parts = (linear, sample, host, decode, windowed, prefill)
    return ProfiledTables(
        StepTables(linear.ns, sample.ns, host.ns, decode.ns, windowed.ns, prefill.ns, window),
        TableShares(*(part.by_tag for part in parts)),
    )


def _axes(rows: int, columns: int) -> tuple[F64, F64]:
    """The values of a table's two axes at every entry."""
    x, y = np.meshgrid(grid_values(rows), grid_values(columns), indexing="ij")
    return x.astype(np.float64), y.astype(np.float64)


def _linear(step: ProfiledStep, tokens: I64, sizes: TableSizes) -> Shares:
    """Steps of so many tokens, padded to the next captured size, or as long as their launches take."""
    captures = sizes.captures()
    different, index = np.unique(padded_tokens(tokens, captures), return_inverse=True)
    parts, launches = linear_parts(step, different.astype(np.float64))
    found = summed(parts, different.shape)
    ns, by_tag = found.ns[index], found.by_tag[:, index]
    host = step.model.host
    # what was measured is a bare launch, of which a model that is not compiled has the least part
    measured = None if host is None or sizes.enforce_eager else host.launch_ns
    assumed = step.law.eager_launch_ns if sizes.enforce_eager else step.law.launch_ns
    launched = (launches + len(step.arch.layers)) * (assumed if measured is None else measured)
    eager = (tokens > max(captures, default=0)) & (tokens > 0)
    bound = np.where(eager, np.maximum(ns, launched), ns)
    by_tag[Tag.ASSUMED if measured is None else Tag.INTERPOLATED] += bound - ns
    gap = np.where(tokens > 0, step.law.gap_ns, 0.0)
    by_tag[Tag.ASSUMED] += gap
    return Shares(bound + gap, by_tag)


def _host(step: ProfiledStep, rows: F64) -> Times:
    found = step.model.host_ns(rows)
    if found is not None:
        return found
    law = step.law
    return tagged(np.where(rows > 0, law.host_step_ns + law.host_request_ns * rows, 0.0), Tag.ASSUMED)
