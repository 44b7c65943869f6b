"""Step times from datasheet figures: every operator on a roofline, summed. Never measured, so labelled uncalibrated."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from simkit.models.architecture import Architecture
from simkit.models.attention_operators import decode_attention, prefill_attention
from simkit.models.captures import default_capture_sizes, padded_tokens
from simkit.models.device import Device
from simkit.models.efficiency import (
    CORNER,
    EFFICIENCY,
    HOST_REQUEST_NS,
    HOST_STEP_NS,
    LAUNCH_NS,
    PREFILL_EXTRA_KEYS,
    collective,
    compute_fraction,
)
from simkit.models.layout import Layout, check_layout
from simkit.models.operators import Operator, linear_operators, sampling_operators
from simkit.models.precision import Precision
from simkit.models.steptables import StepTables, grid_values

F64 = NDArray[np.float64]

PROVENANCE = "uncalibrated"


def operator_ns(operator: Operator, device: Device, arch: Architecture, weights: Precision | None) -> F64:
    """The time of an operator on one GPU in ns, f64 of the operator's shape; 0 where it has nothing to do.

    Attention and elementwise work is computed at 16 bits, GEMMs at the precision their weights are stored in.
    """
    family = operator.family
    if family in ("all_reduce", "all_gather", "send"):
        constants = collective(family, device)
        seconds = operator.sent_bytes / (constants.efficiency * device.link_bytes_per_s)
        return np.where(operator.sent_bytes > 0, operator.launches * constants.fixed_ns + seconds * 1e9, 0.0)
    quantized = operator.group is not None and arch.weight_bits(operator.group, weights) < 16
    peak = device.flops_per_s((weights or arch.native_weights) if quantized else "bf16")
    compute = operator.flops / (compute_fraction(family, device) * peak)
    memory = operator.memory_bytes / (EFFICIENCY[family].bandwidth * device.bandwidth_bytes_per_s)
    busy = np.power(compute**CORNER + memory**CORNER, 1 / CORNER)
    return np.where(busy > 0, operator.launches * EFFICIENCY[family].fixed_ns + busy * 1e9, 0.0)


def linear_ns(
    arch: Architecture,
    device: Device,
    layout: Layout,
    tokens: NDArray[np.int64],
    weights: Precision | None = None,
    kv: Precision = "bf16",
    capture_sizes: tuple[int, ...] = (),
) -> F64:
    """GEMMs, norms, activations, experts and collectives of steps of `tokens` (i64[n]) new tokens; f64[n] in ns.

    Up to the largest capture size a graph of the next size runs; above it kernels are launched one by one, and the step
    takes at least the time of its launches.
    """
    padded = padded_tokens(tokens, capture_sizes)
    operators = linear_operators(arch, layout, padded.astype(np.float64), weights, kv)
    total = _sum_ns(operators, device, arch, weights, padded.shape)
    launches = sum(operator.launches for operator in operators) + len(arch.layers)
    eager = (tokens > max(capture_sizes, default=0)) & (tokens > 0)
    return np.where(eager, np.maximum(total, launches * LAUNCH_NS), total)


def sample_ns(
    arch: Architecture, device: Device, layout: Layout, rows: NDArray[np.int64], weights: Precision | None = None
) -> F64:
    """lm_head and sampling of `rows` (i64[n]) tokens; f64[n] in ns."""
    operators = sampling_operators(arch, layout, rows.astype(np.float64))
    return _sum_ns(operators, device, arch, weights, rows.shape)


def decode_attention_ns(
    arch: Architecture,
    device: Device,
    layout: Layout,
    requests: NDArray[np.int64],
    contexts: NDArray[np.int64],
    windowed: bool,
    kv: Precision = "bf16",
) -> F64:
    """Attention of `requests` decodes over `contexts` tokens in sum, of the layers with or without a window; in ns."""
    operators = decode_attention(arch, layout, requests.astype(np.float64), contexts.astype(np.float64), windowed, kv)
    shape = np.broadcast_shapes(requests.shape, contexts.shape)
    return np.where(requests > 0, _sum_ns(operators, device, arch, None, shape), 0.0)


def prefill_attention_ns(
    arch: Architecture,
    device: Device,
    layout: Layout,
    chunk: NDArray[np.int64],
    past: NDArray[np.int64],
    kv: Precision = "bf16",
) -> F64:
    """Attention of a prefill chunk after `past` tokens, all layers; in ns."""
    shape = np.broadcast_shapes(chunk.shape, past.shape)
    chunks, pasts = chunk.astype(np.float64), past.astype(np.float64)
    operators = prefill_attention(arch, layout, chunks, pasts, kv, PREFILL_EXTRA_KEYS)
    return _sum_ns(operators, device, arch, None, shape)


def _sum_ns(
    operators: Iterable[Operator],
    device: Device,
    arch: Architecture,
    weights: Precision | None,
    shape: tuple[int, ...],
) -> F64:
    total = np.zeros(shape)
    for operator in operators:
        total += operator_ns(operator, device, arch, weights)
    return total


def roofline_tables(
    arch: Architecture,
    device: Device,
    layout: Layout | None = None,
    weights: Precision | None = None,
    kv: Precision = "bf16",
    max_num_batched_tokens: int = 8192,
    max_num_seqs: int = 256,
    max_model_len: int | None = None,
    kv_tokens: int | None = None,
    capture_sizes: tuple[int, ...] | None = None,
    enforce_eager: bool = False,
) -> StepTables:
    """The step-time tables of a deployment from datasheet figures (provenance: `PROVENANCE`).

    Args:
        arch: the model.
        device: the GPU.
        layout: how the model is spread; one GPU if None. Stages of a pipeline are passed one after the other.
        weights: precision the linear layers are stored in; None as published.
        kv: precision of the KV cache.
        max_num_batched_tokens: the largest step.
        max_num_seqs: the most requests of a step.
        max_model_len: tokens of the longest request; None is the model's own limit.
        kv_tokens: tokens the KV cache holds (`MemoryPlan.kv_tokens`); None if not limiting.
        capture_sizes: CUDA-graph sizes; None is vLLM's default.
        enforce_eager: no CUDA graphs.

    Raises:
        InputError: the layout is impossible.
    """
    layout = layout or Layout()
    check_layout(arch, layout)
    longest = arch.max_context_tokens if max_model_len is None else min(max_model_len, arch.max_context_tokens)
    held = max_num_seqs * longest if kv_tokens is None else min(kv_tokens, max_num_seqs * longest)
    sizes = capture_sizes if capture_sizes is not None else default_capture_sizes(max_num_seqs, max_num_batched_tokens)
    tokens = np.arange(max_num_batched_tokens + 1, dtype=np.int64)
    rows = np.arange(max_num_seqs + 1, dtype=np.int64)
    batch = grid_values(max_num_seqs)[:, None]
    contexts = grid_values(held)[None, :]
    chunk, past = grid_values(max_num_batched_tokens)[:, None], grid_values(longest)[None, :]
    linear = linear_ns(arch, device, layout, tokens, weights, kv, () if enforce_eager else sizes)
    window = _window_tokens(arch)
    return StepTables(
        linear_ns=np.maximum.accumulate(linear),
        sample_ns=sample_ns(arch, device, layout, rows, weights),
        host_ns=np.where(rows > 0, HOST_STEP_NS + HOST_REQUEST_NS * rows, 0.0),
        decode_ns=decode_attention_ns(arch, device, layout, batch, contexts, False, kv),
        decode_window_ns=(
            decode_attention_ns(arch, device, layout, batch, contexts, True, kv) if window else np.zeros((0, 0))
        ),
        prefill_ns=prefill_attention_ns(arch, device, layout, chunk, past, kv),
        window_tokens=window,
    )


def _window_tokens(arch: Architecture) -> int:
    """The widest window of the model in tokens, 0 if it has none (published models have one width)."""
    return max((layer.attention.window_tokens or 0 for layer in arch.kinds), default=0)
