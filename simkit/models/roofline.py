"""Step times from datasheet figures: every operator on a roofline, summed. Never measured, so labelled uncalibrated."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from simkit.models.architecture import Architecture
from simkit.models.device import Device
from simkit.models.efficiency import (
    COLLECTIVES,
    CORNER,
    EAGER_LAUNCH_NS,
    EFFICIENCY,
    HOST_REQUEST_NS,
    HOST_STEP_NS,
    LAUNCH_NS,
    PREFILL_EXTRA_KEYS,
    collective,
    compute_fraction,
)
from simkit.models.layout import Layout
from simkit.models.operators import Operator
from simkit.models.precision import Precision
from simkit.models.state_time import ASSUMED
from simkit.models.step_law import StepLaw, TableSizes, decode_ns, prefill_ns, step_tables
from simkit.models.steptables import StepTables

F64 = NDArray[np.float64]

PROVENANCE = "uncalibrated"


def operator_ns(operator: Operator, device: Device, arch: Architecture, weights: Precision | None) -> F64:
    """The time of an operator on one GPU in ns, f64 of the operator's shape; 0 where it has nothing to do.

    Attention and elementwise work is computed at 16 bits, GEMMs at the precision their weights are stored in.
    """
    family = operator.family
    if family in COLLECTIVES:
        constants = collective(family, device)
        seconds = operator.sent_bytes / (constants.efficiency * (operator.link_bytes_per_s or device.link_bytes_per_s))
        return np.where(operator.sent_bytes > 0, operator.launches * constants.fixed_ns + seconds * 1e9, 0.0)
    quantized = operator.group is not None and arch.weight_bits(operator.group, weights) < 16
    peak = device.flops_per_s((weights or arch.native_weights) if quantized else "bf16")
    compute = operator.flops / (compute_fraction(family, device) * peak)
    memory = operator.memory_bytes / (EFFICIENCY[family].bandwidth * device.bandwidth_bytes_per_s)
    busy = np.power(compute**CORNER + memory**CORNER, 1 / CORNER)
    return np.where(busy > 0, operator.launches * EFFICIENCY[family].fixed_ns + busy * 1e9, 0.0)


def roofline_law(arch: Architecture, device: Device, weights: Precision | None = None) -> StepLaw:
    """The step law of a model on a device, from datasheet figures alone."""
    return StepLaw(
        operator_ns=partial(operator_ns, device=device, arch=arch, weights=weights),
        launch_ns=LAUNCH_NS,
        eager_launch_ns=EAGER_LAUNCH_NS,
        host_step_ns=HOST_STEP_NS,
        host_request_ns=HOST_REQUEST_NS,
        prefill_extra_keys=PREFILL_EXTRA_KEYS,
        state_prefill_ns=lambda own, longest, tokens: ASSUMED.ns(own, device, longest, tokens),
    )


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
    law = roofline_law(arch, device)
    return decode_ns(law, arch, layout, requests.astype(np.float64), contexts.astype(np.float64), windowed, kv)


def prefill_attention_ns(
    arch: Architecture,
    device: Device,
    layout: Layout,
    chunk: NDArray[np.int64],
    past: NDArray[np.int64],
    kv: Precision = "bf16",
) -> F64:
    """Attention of a prefill chunk after `past` tokens, all layers; in ns."""
    law = roofline_law(arch, device)
    return prefill_ns(law, arch, layout, chunk.astype(np.float64), past.astype(np.float64), kv)


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
    sizes = TableSizes(max_num_batched_tokens, max_num_seqs, max_model_len, kv_tokens, capture_sizes, enforce_eager)
    return step_tables(roofline_law(arch, device, weights), arch, layout or Layout(), sizes, weights, kv)
