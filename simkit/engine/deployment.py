"""What is deployed: a model on a device, in a layout, at a precision, served by an engine with its settings."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from simkit.engine.settings import EngineSettings
from simkit.engine.state import Limits
from simkit.models import calibrated, roofline
from simkit.models.architecture import Architecture
from simkit.models.captures import default_capture_sizes
from simkit.models.catalog import load_model
from simkit.models.device import Device, load_device
from simkit.models.engine_law import engine_law
from simkit.models.front_end import NO_FRONT_END, FrontEndLaw
from simkit.models.layout import Layout
from simkit.models.memory import MemoryPlan, plan_memory
from simkit.models.precision import Precision, parse_kv_precision, parse_precision
from simkit.models.sampling import Sampling
from simkit.models.step_law import TableSizes, step_tables
from simkit.models.steptables import NOT_ALONE, StepTables
from simkit.models.table_shares import TableShares

GIB = 1 << 30
OTHER_KERNELS = ("sglang",)  # disciplines of engines whose kernels cut each context by its own length
ROOFLINE_NOTE = "a roofline from datasheet figures, not measured on this device; expect errors of 10 to 30 %"


StepTime = Literal["calibrated", "uncalibrated"]
"""calibrated: public kernel measurements and fitted engine constants, where the device's kind was measured."""


class Deployment(BaseModel):
    """One replica, as a user describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="a name from `simkit models`, or a path of a Hugging Face config.json")
    device: str = Field(description="a name from `simkit devices`, or a path of a YAML file")
    layout: Layout = Field(default_factory=Layout)
    weights: str | None = Field(default=None, description="precision of the linear layers; default as published")
    kv: str = Field(default="bf16", description="precision of the KV cache")
    sampling: Sampling = Field(default="published", description="plain or truncated (top-p, top-k) sampling")
    step_time: StepTime = Field(default="calibrated", description="uncalibrated: a roofline from datasheet figures")
    engine: EngineSettings = Field(default_factory=EngineSettings)


@dataclass(frozen=True)
class ReplicaSpec:
    """A deployment worked out: what one replica can hold and how long its steps take."""

    deployment: Deployment
    architecture: Architecture
    device: Device
    memory: MemoryPlan
    num_blocks: int
    limits: Limits
    tables: StepTables
    provenance: str  # where the step times come from: "calibrated", "uncalibrated", or a profile's name
    provenance_note: str
    front_end: FrontEndLaw = NO_FRONT_END  # what clients wait for beside the steps, of the same provenance
    known: TableShares | None = None  # how much of each step time is how well known, where a profile says


def resolve(deployment: Deployment) -> ReplicaSpec:
    """Fill in every default the way the engine does, plan the memory, build the step-time tables.

    Raises InputError for an unknown name, an impossible layout, or a model that does not fit.
    """
    settings = deployment.engine
    settings.dialect()
    arch = load_model(deployment.model)
    device = load_device(deployment.device)
    weights: Precision | None = None
    if deployment.weights is not None:
        weights = parse_precision(deployment.weights, "deployment.weights")
    kv = parse_kv_precision(deployment.kv, "deployment.kv")
    batched, seqs = default_batch(device)
    batched = settings.max_num_batched_tokens or batched
    seqs = settings.max_num_seqs or seqs
    # vLLM's CUDA-graph memory is part of the budget since 0.21 (gpu_worker.py, determine_available_memory)
    graphs_counted = int(settings.engine.rsplit(".", 1)[1]) >= 21
    longest = settings.max_model_len or arch.max_context_tokens
    captures = default_capture_sizes(seqs, batched)
    memory = plan_memory(
        arch,
        device,
        deployment.layout,
        weights,
        kv,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        max_num_batched_tokens=batched,
        max_num_seqs=seqs,
        max_model_len=longest,
        block_size=settings.block_size,
        capture_sizes=captures,
        enforce_eager=settings.enforce_eager,
        graphs_counted=graphs_counted,
    )
    num_blocks = settings.num_gpu_blocks_override or memory.num_blocks
    limits = settings.limits(
        num_blocks, longest, batched, seqs, kv_block_bytes=memory.block_bytes, stages=deployment.layout.pipeline
    )
    sizes = TableSizes(
        max_num_batched_tokens=batched,
        max_num_seqs=seqs,
        max_model_len=longest,
        kv_tokens=num_blocks * settings.block_size,
        capture_sizes=captures,
        enforce_eager=settings.enforce_eager,
    )
    layout = deployment.layout
    if deployment.step_time == "calibrated" and calibrated.has_laws(device):
        tables = calibrated.calibrated_tables(arch, device, layout, weights, kv, sizes, deployment.sampling)
        if settings.discipline in OTHER_KERNELS:
            tables = tables._replace(alone_ns=NOT_ALONE)
        provenance, note = calibrated.PROVENANCE, calibrated.provenance_note(device)
        front_end = engine_law().front_end(device.name)
    else:
        tables = step_tables(roofline.roofline_law(arch, device, weights), arch, layout, sizes, weights, kv)
        provenance, note, front_end = roofline.PROVENANCE, ROOFLINE_NOTE, NO_FRONT_END
    return ReplicaSpec(deployment, arch, device, memory, num_blocks, limits, tables, provenance, note, front_end)


def default_batch(device: Device) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of a vLLM server on this device when neither is given.

    Source: vLLM 0.32 EngineArgs.get_batch_defaults, usage context OPENAI_API_SERVER: 160 GiB and more 16384 / 1024;
    70 GiB and more except A100 8192 / 1024; others 2048 / 256.
    """
    memory_gib = device.memory_bytes / GIB
    if memory_gib >= 160:
        return 16384, 1024
    if memory_gib >= 70 and "a100" not in device.name.lower():
        return 8192, 1024
    return 2048, 256
