"""Step times from public kernel measurements and an engine's measured constants: what `run` and `plan` use."""

import numpy as np

from simkit.models.architecture import Architecture, ParameterGroup
from simkit.models.device import Device
from simkit.models.efficiency import (
    EAGER_LAUNCH_NS,
    HOST_REQUEST_NS,
    HOST_STEP_NS,
    LAUNCH_NS,
    CollectiveFamily,
    collective,
)
from simkit.models.engine_law import EngineLaw, engine_law
from simkit.models.flash_attention import alone_ns, cuts_batches_alike, full_attention_layers, whole_ns
from simkit.models.kernel_laws import DeviceLaws, KernelLaw, laws_of
from simkit.models.layout import Layout
from simkit.models.operators import F64, Operator
from simkit.models.precision import Precision
from simkit.models.sampling import Sampling, sorts_vocabulary
from simkit.models.step_law import StepLaw, TableSizes, step_tables
from simkit.models.steptables import StepTables, grid_values

PROVENANCE = "calibrated"
# kernels of a MoE layer that the tables measure together with its two products: their fixed time is the law's, and so
# is how fast those that touch every copy of a token are
INSIDE_GROUPED = ("route", "expert_activation", "combine")
COPIES = ("expert_activation", "combine")
EIGHT = ("fp8", "int8", "nvfp4")  # what the laws of 8 bits stand for
GROUPED_PRODUCTS = 2  # of a layer, between which its fixed time is divided
ELEMENTWISE_BANDWIDTH = 0.60  # of the device's, for large steps: Vidur's A100 and H100 profiles, as in efficiency.py


def has_laws(device: Device) -> bool:
    """Whether calibrated step times can be given for a device."""
    return laws_of(device) is not None


def provenance_note(device: Device) -> str:
    """One sentence: what the step times of a device rest on."""
    found = laws_of(device)
    assert found is not None, "ask has_laws first"
    _, measured = found
    kernels = f"kernels as measured on {measured}"
    if measured != device.name:
        kernels += f", whose fractions of the peaks {device.name} is given"
    front = engine_law().front_end(device.name)
    client = f"front end {front.request_ns / 1e6:.2g} ms and {front.token_ns / 1e3:.2g} us a prompt token"
    return (
        f"{kernels} (AIConfigurator's tables), engine constants fitted on runs of vLLM 0.15 ({client}); "
        "see docs/validate.md"
    )


def calibrated_tables(
    arch: Architecture,
    device: Device,
    layout: Layout | None = None,
    weights: Precision | None = None,
    kv: Precision = "bf16",
    sizes: TableSizes | None = None,
    sampling: Sampling = "published",
    engine: EngineLaw | None = None,
    laws: DeviceLaws | None = None,
) -> StepTables:
    """The step-time tables of a deployment on a device that has kernel laws (`has_laws`).

    Args:
        arch: the model.
        device: the GPU.
        layout: how the model is spread; one GPU if None.
        weights: precision the linear layers are stored in; None as published.
        kv: precision of the KV cache.
        sizes: how far the tables reach.
        sampling: whether sampling sorts the vocabulary.
        engine: the engine's constants; None are those that ship.
        laws: of the kernels; None are the device's.

    Raises:
        InputError: the layout is impossible.
    """
    found = laws_of(device)
    assert found is not None, "ask has_laws first"
    layout = layout or Layout()
    law = calibrated_law(arch, device, layout, weights, laws or found[0], engine or engine_law(), sampling)
    sizes = sizes or TableSizes()
    tables = step_tables(law, arch, layout, sizes, weights, kv)
    return as_cut(tables, arch, device, layout, kv, sizes, laws or found[0])


def as_cut(
    tables: StepTables,
    arch: Architecture,
    device: Device,
    layout: Layout,
    kv: Precision,
    sizes: TableSizes,
    laws: DeviceLaws,
) -> StepTables:
    """The tables of an architecture where a kernel cuts all contexts of a batch alike; elsewhere as they are."""
    if not cuts_batches_alike(device, kv):
        return tables
    longest = sizes.max_model_len or arch.max_context_tokens
    alone = alone_ns(arch, layout, device, sizes.max_num_seqs, longest, sizes.captures())
    # the longest request's kernels start and end as everybody's do, which `decode_ns` counts
    start_ns = laws.attention_decode.fixed_us * 1e3 * full_attention_layers(arch)
    return tables._replace(
        decode_ns=_at_least_whole(tables.decode_ns, arch, layout, False),
        decode_window_ns=_at_least_whole(tables.decode_window_ns, arch, layout, True),
        alone_ns=np.where(alone > 0, alone + start_ns, 0.0),
    )


def _at_least_whole(table: F64, arch: Architecture, layout: Layout, windowed: bool) -> F64:
    """A table over [grid(requests), grid(tokens)] whose contexts may stay whole (models/flash_attention.py)."""
    if table.size == 0:
        return table
    requests, tokens = (grid_values(1 << 62)[:size].astype(np.float64) for size in table.shape)
    whole = whole_ns(arch, layout, windowed, requests[:, None], tokens[None, :])
    return np.where(table > 0, np.maximum(table, whole), table)


def calibrated_law(
    arch: Architecture,
    device: Device,
    layout: Layout,
    weights: Precision | None,
    laws: DeviceLaws,
    engine: EngineLaw,
    sampling: Sampling,
) -> StepLaw:
    """A deployment's step law."""
    host = engine.host_factor(device.name)
    sort_ns = arch.vocab * engine.sort_bytes_per_logit / device.bandwidth_bytes_per_s * 1e9
    return StepLaw(
        operator_ns=lambda operator: operator_ns(operator, arch, device, layout, weights, laws, engine),
        launch_ns=LAUNCH_NS,
        eager_launch_ns=EAGER_LAUNCH_NS * host,
        host_step_ns=HOST_STEP_NS * host,
        host_request_ns=HOST_REQUEST_NS * host,
        prefill_extra_keys=laws.attention_prefill.extra_keys,
        gap_ns=engine.step_us * 1e3 * host,
        chunk_ns=engine.chunk_layer_us * 1e3 * len(arch.layers) * host,
        row_ns=sort_ns if sorts_vocabulary(arch, sampling) else 0.0,
        state_prefill_ns=lambda own, longest, tokens: laws.state_prefill.ns(own, device, longest, tokens),
    )


def operator_ns(
    operator: Operator,
    arch: Architecture,
    device: Device,
    layout: Layout,
    weights: Precision | None,
    laws: DeviceLaws,
    engine: EngineLaw,
) -> F64:
    """The time of an operator on one GPU in ns, f64 of the operator's shape; 0 where it has nothing to do."""
    family = operator.family
    if family in ("all_reduce", "all_reduce_in_node", "all_gather", "send"):
        return engine.all_reduce_factor * _collective_ns(operator, family, device, layout, laws)
    if family in ("all_to_all", "all_to_all_network", "network"):  # no run of an engine with these was fitted
        return _collective_ns(operator, family, device, layout, laws)
    memory_s = operator.memory_bytes / device.bandwidth_bytes_per_s
    if operator.name in COPIES:
        return memory_s / _experts_law(laws, stored_as(arch, "experts", weights)).copies * 1e9
    if family == "elementwise":
        fixed = 0.0 if operator.name in INSIDE_GROUPED else operator.launches * engine.elementwise_us * 1e3
        streamed = 0.0 if operator.name in INSIDE_GROUPED else memory_s / ELEMENTWISE_BANDWIDTH * 1e9
        return np.where(memory_s > 0, np.maximum(fixed, streamed), 0.0)
    precision = "bf16" if operator.group is None else stored_as(arch, operator.group, weights)
    compute_s = operator.flops / device.flops_per_s(precision)
    if family == "grouped_gemm":
        return _shared_fixed(_experts_law(laws, precision)).ns(compute_s, memory_s, operator.launches)
    if family == "gemm":
        return (laws.gemm_8bit if precision in EIGHT else laws.gemm).ns(compute_s, memory_s, operator.launches)
    if family == "state_decode":
        return laws.state_decode.ns(compute_s, memory_s, operator.launches)
    law = laws.attention_decode if family == "attention_decode" else laws.attention_prefill
    return law.ns(compute_s, memory_s, operator.launches)


def stored_as(arch: Architecture, group: ParameterGroup, weights: Precision | None) -> Precision:
    """The precision of a group of weights; bf16 for all of 16 bits."""
    return (weights or arch.native_weights) if arch.weight_bits(group, weights) < 16 else "bf16"


def _experts_law(laws: DeviceLaws, precision: Precision) -> KernelLaw:
    if precision in EIGHT:
        return laws.grouped_gemm_8bit
    four = {"int4": laws.grouped_gemm_marlin, "mxfp4": laws.grouped_gemm_4bit}
    return four.get(precision, laws.grouped_gemm)


def _shared_fixed(law: KernelLaw) -> KernelLaw:
    return law.model_copy(update={"fixed_us": law.fixed_us / GROUPED_PRODUCTS})


def _collective_ns(
    operator: Operator, family: CollectiveFamily, device: Device, layout: Layout, laws: DeviceLaws
) -> F64:
    sent_s = operator.sent_bytes / (operator.link_bytes_per_s or device.link_bytes_per_s)
    if family in ("all_reduce", "all_reduce_in_node") and laws.link == device.link.kind:
        gpus = layout.tensor_in_node
        law = laws.all_reduce_on(gpus)
        if family == "all_reduce_in_node":
            return law.nccl_ns(sent_s, operator.launches)
        message = operator.sent_bytes / (2.0 * (gpus - 1) / gpus * operator.launches)
        return law.ns(sent_s, message, operator.launches)
    constants = collective(family, device)
    fixed = operator.launches * constants.fixed_ns
    return np.where(sent_s > 0, fixed + sent_s / constants.efficiency * 1e9, 0.0)
