"""What is deployed: a model on a device, in a layout, at a precision, served by an engine with its settings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import lcm
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from simkit.engine.dialect import Dialect, checkpoint_multiple
from simkit.engine.draft_cost import draft_note, draft_of, run_of
from simkit.engine.draft_kinds import READ_HIDDEN_STATES
from simkit.engine.settings import EngineSettings, in_flight_tokens
from simkit.engine.state import STATES_LOST, Limits
from simkit.errors import InputError
from simkit.models import calibrated, roofline
from simkit.models.architecture import Architecture
from simkit.models.captures import default_capture_sizes
from simkit.models.catalog import load_model
from simkit.models.device import Device, load_device
from simkit.models.draft import Draft
from simkit.models.draft_tables import with_draft
from simkit.models.engine_law import engine_law
from simkit.models.front_end import NO_FRONT_END, FrontEndLaw
from simkit.models.kv_groups import PLAIN, KvGroups, aligned_block_size, kv_groups
from simkit.models.layout import Layout, check_layout
from simkit.models.memory import MemoryPlan, plan_memory
from simkit.models.precision import Precision, parse_kv_precision, parse_precision
from simkit.models.sampling import Sampling
from simkit.models.step_law import TableSizes, step_tables
from simkit.models.steptables import NOT_ALONE, StepTables
from simkit.models.table_shares import TableShares

GIB = 1 << 30
OTHER_MEMORY = ("sglang", "vllm-v0", "sarathi", "orca", "static")  # disciplines whose engines keep memory otherwise
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
    draft: Draft | None = None  # what proposes tokens, where that has layers

    @property
    def kv_tokens(self) -> int:
        """Tokens that all KV blocks hold; with windows or states, of requests of the greatest length."""
        if self.limits.window_groups == 0 and self.limits.state_blocks == 0:
            return self.num_blocks * self.limits.block_size
        return int(self.num_blocks / self.blocks_of(self.limits.max_model_len) * self.limits.max_model_len)

    @property
    def context_tokens(self) -> int:
        """The most tokens of context that a step can have, for the step-time tables."""
        return context_tokens(self.num_blocks, self.limits)

    def blocks_of(self, tokens: int) -> int:
        """Blocks that a request of so many tokens may need."""
        return self.memory.groups.blocks_of(tokens, self.limits.block_size, self.memory.in_flight_tokens)


def resolve(deployment: Deployment) -> ReplicaSpec:
    """Fill in every default the way the engine does, plan the memory, build the step-time tables.

    Raises InputError for an unknown name, an impossible layout, or a model that does not fit.
    """
    arch = load_model(deployment.model)
    deployment = _with_states(deployment, arch)
    settings = deployment.engine
    dialect = settings.dialect()
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
    layout = deployment.layout
    block_size, multiple = settings.block_size, None
    if arch.linear_layers:
        check_layout(arch, layout)
        multiple = _checkpoint_multiple(arch, settings, dialect, device)
        block_size = aligned_block_size(arch, layout, kv, block_size, multiple or 1)
        settings = settings.model_copy(update={"block_size": block_size})
    draft = draft_of(settings, arch, layout, weights)
    groups = replace(_groups(arch, settings, dialect, draft), checkpoints=multiple is not None)
    memory = plan_memory(
        arch,
        device,
        layout,
        weights,
        kv,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        max_num_batched_tokens=batched,
        max_num_seqs=seqs,
        max_model_len=longest,
        block_size=block_size,
        capture_sizes=captures,
        enforce_eager=settings.enforce_eager,
        graphs_counted=graphs_counted,
        groups=groups,
        in_flight_tokens=in_flight_tokens(dialect, batched, settings.pipeline_depth(layout.pipeline)),
        draft=draft,
    )
    num_blocks = settings.num_gpu_blocks_override or memory.num_blocks
    limits = settings.limits(
        num_blocks,
        longest,
        batched,
        seqs,
        kv_block_bytes=memory.block_bytes,
        stages=layout.pipeline,
        groups=groups,
    )
    sizes = TableSizes(
        max_num_batched_tokens=batched,
        max_num_seqs=seqs,
        max_model_len=longest,
        kv_tokens=context_tokens(num_blocks, limits),
        capture_sizes=captures,
        enforce_eager=settings.enforce_eager,
    )
    if deployment.step_time == "calibrated" and calibrated.has_laws(device):
        tables = calibrated.calibrated_tables(arch, device, layout, weights, kv, sizes, deployment.sampling)
        if settings.discipline in OTHER_KERNELS:
            tables = tables._replace(alone_ns=NOT_ALONE)
        provenance, note = calibrated.PROVENANCE, calibrated.provenance_note(device)
        front_end = engine_law().front_end(device.name)
    else:
        tables = step_tables(roofline.roofline_law(arch, device, weights), arch, layout, sizes, weights, kv)
        provenance, note, front_end = roofline.PROVENANCE, ROOFLINE_NOTE, NO_FRONT_END
    spec = ReplicaSpec(
        deployment, arch, device, memory, num_blocks, limits, tables, provenance, note, front_end, draft=draft
    )
    return with_draft_time(spec, sizes)


def _with_states(deployment: Deployment, arch: Architecture) -> Deployment:
    """The deployment of a model whose layers keep states, with what that settles; others as they are.

    Raises InputError for what is not modelled with them.
    """
    settings = deployment.engine
    if not arch.linear_layers:
        return deployment
    kind = arch.linear_layers[0].kind
    place, what = "deployment.engine.", f"layers that keep a state ({kind} of {arch.name})"
    # vLLM has it on since 0.26
    cached = settings.dialect().state_chunks != STATES_LOST
    if settings.enable_prefix_caching and not cached:
        raise InputError(
            f"{place}enable_prefix_caching=true: under {settings.engine} prefix caching is not modelled for {what}; "
            "leave it out, and serve with --no-enable-prefix-caching"
        )
    if settings.speculative_tokens:
        raise InputError(
            f"{place}speculative_tokens={settings.speculative_tokens}: drafts are not modelled for {what}; leave it out"
        )
    caching = cached and settings.enable_prefix_caching is not False
    if settings.discipline in OTHER_MEMORY:
        raise InputError(f"{place}discipline={settings.discipline}: its memory is not modelled for {what}; use vllm-v1")
    if settings.discipline != "vllm-v1" and caching:
        raise InputError(
            f"{place}discipline={settings.discipline}: it does not end chunks where states of {what} can be cached; "
            "set enable_prefix_caching: false, or use vllm-v1"
        )
    if settings.disable_hybrid_kv_cache_manager:
        raise InputError(
            f"{place}disable_hybrid_kv_cache_manager=true: vLLM has no other memory for {what}; leave it out"
        )
    return deployment.model_copy(update={"engine": settings.model_copy(update={"enable_prefix_caching": caching})})


def _checkpoint_multiple(arch: Architecture, settings: EngineSettings, dialect: Dialect, device: Device) -> int | None:
    """Tokens of which the places are multiples where a chunk's states can be cached; None: only where it ends.

    One layer that cannot tell a state inside a chunk is enough for that (vLLM get_mamba_prefill_checkpoint_alignment).
    """
    if not settings.enable_prefix_caching:
        return None
    multiples = [checkpoint_multiple(attention, dialect, device) for attention in arch.linear_layers]
    found = [multiple for multiple in multiples if multiple is not None]
    return lcm(*found) if len(found) == len(multiples) else None


def with_draft_time(spec: ReplicaSpec, sizes: TableSizes) -> ReplicaSpec:
    """The replica with its draft's runs in its step tables; as it is without one, or where their time is told.

    By what times steps without a profile, whatever the tables are from.
    """
    deployment, settings = spec.deployment, spec.deployment.engine
    if spec.draft is None or settings.tells_draft_time:
        return spec
    run = run_of(
        spec.tables,
        spec.draft,
        spec.device,
        deployment.layout,
        sizes,
        parse_kv_precision(deployment.kv, "deployment.kv"),
        calibrated=deployment.step_time == "calibrated",
    )
    tables = with_draft(spec.tables, run, settings.speculative_tokens)
    proposing = draft_note(spec.tables, tables, spec.draft, settings.speculative_tokens)
    return replace(spec, tables=tables, provenance_note=f"{spec.provenance_note}; {proposing}")


def _groups(arch: Architecture, settings: EngineSettings, dialect: Dialect, draft: Draft | None) -> KvGroups:
    """The groups of layers that share the KV blocks; InputError where some are asked for that are not modelled."""
    if settings.keeps_whole_contexts():
        return PLAIN
    beside = () if draft is None else draft.layers_beside(arch)
    groups = kv_groups(arch, dialect.padding_ratio, beside, settings.enable_prefix_caching is not False)
    if groups.chunked and settings.speculative_tokens > 0 and settings.speculative_method in READ_HIDDEN_STATES:
        # vLLM VllmConfig: "not yet supported with chunked local attention + eagle", 0.16 to 0.33
        if settings.disable_hybrid_kv_cache_manager is False:
            raise InputError(
                "deployment.engine.disable_hybrid_kv_cache_manager=false: vLLM has no hybrid KV cache manager for "
                f"layers that see chunks ({arch.name}) with drafts by {settings.speculative_method}; leave it out"
            )
        return PLAIN
    seen = any(layer.attention.window_tokens is not None for layer in arch.layers)
    if settings.disable_hybrid_kv_cache_manager is False and seen and groups == PLAIN:
        raise InputError(
            "deployment.engine.disable_hybrid_kv_cache_manager=false: the groups that vLLM deals the layers of "
            f"{arch.name} to are not modelled (windows of several sizes, layers of different KV size, or latent "
            "attention with windows); leave it out to have whole contexts charged"
        )
    return groups


def context_tokens(num_blocks: int, limits: Limits) -> int:
    """The most tokens that the contexts of a batch have together: as layers that keep all of it can hold, if any do."""
    if limits.full_groups > 0:
        return (num_blocks - limits.state_blocks) * limits.block_size // limits.full_groups
    return limits.max_running * limits.max_model_len


def with_whole_contexts(spec: ReplicaSpec, resolve: Callable[[Deployment], ReplicaSpec]) -> ReplicaSpec:
    """The same replica where KV is moved to others or to tiers of memory: for that every layer keeps whole contexts.

    vLLM turns its hybrid KV cache manager off where KV goes through a connector; from 0.22 on, not for each of them.

    Raises:
        InputError: the file says not to turn it off, or layers keep states, which are not moved.
    """
    if spec.architecture.linear_layers:
        raise InputError(
            f"deployment.model={spec.architecture.name}: the states that its layers keep beside KV are not moved here "
            "(disaggregation, tiers); choose a model without, or leave these out"
        )
    if spec.limits.window_groups == 0:
        return spec
    engine = spec.deployment.engine
    if engine.disable_hybrid_kv_cache_manager is not None:
        raise InputError(
            "deployment.engine.disable_hybrid_kv_cache_manager=false: KV that is moved (disaggregation, tiers) is "
            "moved whole here; leave it out"
        )
    engine = engine.model_copy(update={"disable_hybrid_kv_cache_manager": True})
    return resolve(spec.deployment.model_copy(update={"engine": engine}))


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
