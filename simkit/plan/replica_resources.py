"""The resources of one replica: the share of each that a replay used, and the same replica with more of one.

Shares in use are counts of floating-point operations and bytes over what the devices could do in the same time.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.engine.deployment import ReplicaSpec
from simkit.engine.draft_cost import run_of
from simkit.metrics.result import RunResult
from simkit.models.attention_operators import attended_pairs, decode_attention, prefill_attention
from simkit.models.device import Device
from simkit.models.draft_tables import pass_operators, with_draft
from simkit.models.layout import Layout
from simkit.models.operators import Operator, linear_operators
from simkit.models.precision import Precision, parse_kv_precision, parse_precision
from simkit.models.roofline import roofline_law
from simkit.models.step_law import TableSizes, step_tables
from simkit.models.steptables import StepTables

I64 = NDArray[np.int64]

MORE = 1.1
LINK, NETWORK = "link", "network"  # a device's own, to GPUs of its node; to other nodes
DEVICE_TABLES = (
    "linear_ns",
    "stage_linear_ns",
    "sample_ns",
    "decode_ns",
    "decode_window_ns",
    "prefill_ns",
    "draft_ns",
)  # what the device, not the host, takes
RESOURCES = ("compute", "bandwidth", "KV", "host", LINK, NETWORK)


class Work(NamedTuple):
    """What one GPU did in all of a replay's steps; of a pipeline the mean over its stages."""

    flops: float
    memory_bytes: float
    link_bytes: float
    network_bytes: float


def in_use(spec: ReplicaSpec, result: RunResult) -> dict[str, float | None]:
    """The share of each resource that a replay used, of one GPU from the first arrival on; None: plays no part."""
    arrival = result.requests.arrival_ns
    seconds = max(float(result.end_ns - int(arrival[0])), 1.0) / 1e9 if len(arrival) else 1.0
    work, over = _work(spec, result), links(spec)
    device = spec.device
    weights = _weights(spec)
    host = spec.tables.host_ns
    batches = result.batch_requests.count[: len(host)]
    host_s = float((host[: len(batches)] * batches).sum()) / 1e9
    kv = result.series.kv_used
    return {
        "compute": work.flops / seconds / device.flops_per_s(weights or spec.architecture.native_weights),
        "bandwidth": work.memory_bytes / seconds / device.bandwidth_bytes_per_s,
        "KV": float(kv.max()) if len(kv) else 0.0,
        "host": min(1.0, host_s / seconds),
        LINK: work.link_bytes / seconds / device.link_bytes_per_s if LINK in over else None,
        NETWORK: work.network_bytes / seconds / _network_bytes_per_s(spec) if NETWORK in over else None,
    }


def links(spec: ReplicaSpec) -> set[str]:
    """Which of `LINK` and `NETWORK` a replica's GPUs send over."""
    deployment = spec.deployment
    one = linear_operators(spec.architecture, deployment.layout, np.ones(1), _weights(spec))
    return {NETWORK if operator.link_bytes_per_s else LINK for operator in one if operator.sent_bytes[0] > 0}


def _network_bytes_per_s(spec: ReplicaSpec) -> float:
    return spec.deployment.layout.network_gb_per_s * 1e9


def _weights(spec: ReplicaSpec) -> Precision | None:
    name = spec.deployment.weights
    return None if name is None else parse_precision(name, "deployment.weights")


def _work(spec: ReplicaSpec, result: RunResult) -> Work:
    deployment, arch = spec.deployment, spec.architecture
    kv = parse_kv_precision(deployment.kv, "deployment.kv")
    flops = moved = 0.0
    sent = {LINK: 0.0, NETWORK: 0.0}
    for operator, times in _linear_work(spec, result, kv):
        flops += float((operator.flops * times).sum())
        moved += float((operator.memory_bytes * times).sum())
        sent[NETWORK if operator.link_bytes_per_s else LINK] += float((operator.sent_bytes * times).sum())
    requests = result.requests
    prompt = requests.prompt_tokens.astype(np.float64)
    # the token after the prompt comes with the prefill: generated - 1 decodes, over contexts that grow by one each
    decodes = np.maximum(0.0, requests.generated_tokens.astype(np.float64) - 1)
    own = prompt - requests.hit_tokens
    found = prefill_attention(arch, deployment.layout, own, requests.hit_tokens.astype(np.float64), kv)
    of_windows = spec.tables.window_tokens
    for window in (None, of_windows) if of_windows else (None,):
        contexts = attended_pairs(decodes, prompt, window)
        found += decode_attention(arch, deployment.layout, decodes, contexts, window is not None, kv)
    for operator in found:
        flops += float(np.sum(operator.flops))
        moved += float(np.sum(operator.memory_bytes))
    stages = deployment.layout.pipeline
    return Work(flops / stages, moved / stages, sent[LINK] / stages, sent[NETWORK] / stages)


def _linear_work(spec: ReplicaSpec, result: RunResult, kv: Precision) -> Iterator[tuple[Operator, I64]]:
    """Operators of all steps of a replay without attention, at each size of a step, and how often it came."""
    layout, steps, batches = spec.deployment.layout, result.batch_tokens.count, result.batch_requests.count
    tokens, requests = (np.flatnonzero(counts).astype(np.float64) for counts in (steps, batches))
    for operator in linear_operators(spec.architecture, layout, tokens, _weights(spec), kv):
        yield operator, steps[steps > 0]
    if spec.draft is not None:
        # its first run is over the step's tokens, the others over a token of each of its requests
        own, later = spec.draft.layout(layout), spec.deployment.engine.speculative_tokens - 1
        for operator in pass_operators(spec.draft, own, tokens, kv, first=True):
            yield operator, steps[steps > 0]
        for operator in pass_operators(spec.draft, own, requests, kv, first=False):
            yield operator, later * batches[batches > 0]


def with_more(spec: ReplicaSpec, resource: str, factor: float = MORE) -> ReplicaSpec | None:
    """The same replica with `factor` times as much of a resource; None where that cannot be told.

    Measured step times are scaled as the roofline's are, place by place.
    """
    if resource == "KV":
        return replace(spec, num_blocks=1 + round((spec.num_blocks - 1) * factor))
    if resource == "host":
        return replace(spec, tables=spec.tables._replace(host_ns=spec.tables.host_ns / factor))
    if resource in (LINK, NETWORK) and resource not in links(spec):
        return None
    before = device_tables(spec, spec.device, spec.deployment.layout)
    if resource == NETWORK:
        layout = spec.deployment.layout
        faster = layout.model_copy(update={"network_gb_per_s": layout.network_gb_per_s * factor})
        after = device_tables(spec, spec.device, faster)
    else:
        after = device_tables(spec, _more_of(spec.device, resource, factor), spec.deployment.layout)
    tables = spec.tables
    for name in DEVICE_TABLES:
        own, old, new = getattr(tables, name), getattr(before, name), getattr(after, name)
        if own.shape != old.shape:
            return None
        ratio = np.divide(new, old, out=np.ones_like(old), where=old > 0)
        tables = tables._replace(**{name: own * ratio})
    return replace(spec, tables=tables)


def _more_of(device: Device, resource: str, factor: float) -> Device:
    if resource == "bandwidth":
        figure = device.bandwidth_gb_per_s
        return device.model_copy(
            update={"bandwidth_gb_per_s": figure.model_copy(update={"value": figure.value * factor})}
        )
    if resource == LINK:
        faster = device.link.model_copy(update={"gb_per_s": device.link.gb_per_s * factor})
        return device.model_copy(update={"link": faster})
    peaks = {
        name: None if (peak := getattr(device.tflops, name)) is None else peak * factor
        for name in ("bf16", "fp8", "int8", "fp4")
    }
    return device.model_copy(update={"tflops": device.tflops.model_copy(update=peaks)})


def device_tables(spec: ReplicaSpec, device: Device, layout: Layout) -> StepTables:
    """The roofline's step times of a replica's deployment on a device, in a layout."""
    deployment, limits, settings = spec.deployment, spec.limits, spec.deployment.engine
    kv = parse_kv_precision(deployment.kv, "deployment.kv")
    sizes = TableSizes(
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_running,
        max_model_len=limits.max_model_len,
        kv_tokens=spec.context_tokens,
        enforce_eager=settings.enforce_eager,
    )
    weights = _weights(spec)
    law = roofline_law(spec.architecture, device, weights)
    tables = step_tables(law, spec.architecture, layout, sizes, weights, kv)
    if len(spec.tables.draft_ns) == 0 or spec.draft is None:
        return tables
    run = run_of(tables, spec.draft, device, layout, sizes, kv, calibrated=False)
    return with_draft(tables, run, settings.speculative_tokens)
