"""Where a GPU's memory goes when a model is served, and how many KV blocks are left.

Follows vLLM V1: requested = utilization x total; what remains after weights, the profiled activation peak and what lies
outside torch is cut into blocks of `block_size` tokens over all layers of a stage.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from simkit.errors import InputError
from simkit.models.activation import peak_bytes
from simkit.models.architecture import Architecture
from simkit.models.captures import default_capture_sizes
from simkit.models.device import Device, known_devices, load_device
from simkit.models.draft import Draft
from simkit.models.kv_groups import PLAIN, KvGroups, block_token_bytes, longest_held
from simkit.models.layout import Layout, check_layout, fitting_tensor_sizes
from simkit.models.precision import Precision
from simkit.models.sharding import weight_bytes_per_stage

MIB = 1 << 20
# CUDA context, loaded kernels and cuBLAS workspaces of one process: what the measured runs of docs/models.md leave
# unexplained at tensor 1 (680 MiB on H100); public logs of vLLM print 0.3 to 0.6 GiB as non-torch memory.
CONTEXT_BYTES = 680 * MIB
# Tables of rotary positions up to this size are inside the two constants around this line, as they were in the runs
# that these were taken from (8 MiB at tensor 1, 32 MiB beyond); what is larger comes on top.
ROTARY_IN_CONTEXT_BYTES = 32 * MIB
# NCCL channels and vLLM's custom all-reduce buffers: the same at tensor 2 and 4.
COLLECTIVE_BYTES = 100 * MIB
# Graphs of all capture sizes share one pool; each adds nodes and workspaces. Assumed: public logs of vLLM 0.11 to 0.27
# print 0.36 to 0.6 GiB for 16 to 67 sizes.
GRAPH_POOL_BYTES = 256 * MIB
GRAPH_BYTES_PER_SIZE = 5 * MIB


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU of the stage with fewest KV blocks, and what the KV cache of the replica holds."""

    total_bytes: int
    requested_bytes: int  # utilization x total: what the engine takes for everything but uncounted graphs
    weight_bytes: int
    activation_bytes: int
    context_bytes: int
    collective_bytes: int
    graph_bytes: int
    graphs_counted: bool  # graphs are inside `requested_bytes`
    block_bytes: int
    num_blocks: int
    block_size: int  # tokens
    max_model_len: int
    groups: KvGroups = PLAIN  # of layers: one block holds `block_size` tokens of the layers of one group
    in_flight_tokens: int = 0  # beside its window, whose blocks a request may hold
    draft_bytes: int = 0  # weights of what proposes tokens, which it does not share with the model
    rotary_bytes: int = 0  # of rotary tables, what is not in `context_bytes`

    @property
    def kv_tokens(self) -> int:
        """Tokens the KV cache of one replica holds. (vLLM keeps one of the blocks as its null block.)

        Where layers see windows or keep states, those of requests of `max_model_len`, as vLLM prints it ("GPU KV cache
        size", >= 0.20).
        """
        if self.groups.window or self.groups.state:
            return int(self.max_concurrency * self.max_model_len)
        return self.num_blocks * self.block_size

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache on this GPU."""
        return self.num_blocks * self.block_bytes

    @property
    def max_concurrency(self) -> float:
        """Requests of `max_model_len` tokens that fit at once (vLLM get_max_concurrency_for_kv_cache_config)."""
        return self.num_blocks / self.groups.blocks_of(self.max_model_len, self.block_size, self.in_flight_tokens)

    @property
    def longest_tokens(self) -> int:
        """Tokens of a request that would fit alone, up to what was asked for where layers see windows."""
        return longest_held(self.num_blocks, self.groups, self.block_size, self.in_flight_tokens, self.max_model_len)

    def rows(self) -> list[tuple[str, int]]:
        """(name, bytes) for printing: up to "less than a block" they sum to the requested memory, all to the total."""
        inside = [
            ("weights", self.weight_bytes),
            *([("draft weights", self.draft_bytes)] if self.draft_bytes else []),
            *([("rotary table", self.rotary_bytes)] if self.rotary_bytes else []),
            ("activation peak", self.activation_bytes),
            ("CUDA context", self.context_bytes),
            ("collectives", self.collective_bytes),
            ("KV cache", self.kv_bytes),
        ]
        if self.graphs_counted:
            inside.insert(-1, ("CUDA graphs", self.graph_bytes))
        inside.append(("less than a block", self.requested_bytes - sum(size for _, size in inside)))
        outside = [] if self.graphs_counted else [("CUDA graphs (not counted)", self.graph_bytes)]
        outside.append(("left to others", self.total_bytes - self.requested_bytes - sum(size for _, size in outside)))
        return [*inside, *outside]


def plan_memory(
    arch: Architecture,
    device: Device,
    layout: Layout | None = None,
    weights: Precision | None = None,
    kv: Precision = "bf16",
    gpu_memory_utilization: float = 0.9,
    max_num_batched_tokens: int = 8192,
    max_num_seqs: int = 256,
    max_model_len: int | None = None,
    block_size: int = 16,
    capture_sizes: tuple[int, ...] | None = None,
    enforce_eager: bool = False,
    graphs_counted: bool = True,
    groups: KvGroups = PLAIN,
    in_flight_tokens: int | None = None,
    draft: Draft | None = None,
) -> MemoryPlan:
    """The memory of one GPU, and the KV blocks that fit.

    Args:
        arch: the model.
        device: the GPU; its memory is taken to be otherwise empty.
        layout: how the model is spread; one GPU if None.
        weights: precision the linear layers are stored in; None as published.
        kv: precision of the KV cache.
        gpu_memory_utilization: share of the total the engine may take, 0 to 1 (vLLM: 0.9, since 0.21 0.92).
        max_num_batched_tokens: tokens of the profiling pass.
        max_num_seqs: rows of the profiling sample.
        max_model_len: tokens of the longest request; None is the model's own limit.
        block_size: tokens of a KV block.
        capture_sizes: CUDA-graph sizes; None is vLLM's default.
        enforce_eager: no CUDA graphs.
        graphs_counted: whether graphs are taken from the budget (vLLM 0.21 and later) or come on top (earlier).

        groups: how the layers share the pool of blocks (`simkit.models.kv_groups.kv_groups`); PLAIN charges every layer
            its full context, those that see a window too.
        in_flight_tokens: tokens scheduled and not settled at most, which a request's windows hold beside themselves;
            None: `max_num_batched_tokens`.
        draft: what proposes tokens for this model to check: its weights, and its layers' KV in the same blocks.

    Raises:
        InputError: a parameter is out of range, the layout is impossible, or the KV cache would not hold one request of
            `max_model_len` tokens; the message says what would fit.
    """
    layout = layout or Layout()
    check_layout(arch, layout)
    max_model_len = arch.max_context_tokens if max_model_len is None else max_model_len
    _check_range("gpu_memory_utilization", gpu_memory_utilization, 0.0, 1.0)
    numbers = {"max_num_batched_tokens": max_num_batched_tokens, "max_num_seqs": max_num_seqs, "block_size": block_size}
    for name, value in {**numbers, "max_model_len": max_model_len}.items():
        _check_range(name, value, 0, 10**9)
    if max_model_len > arch.max_context_tokens:
        limit = arch.max_context_tokens
        raise InputError(f"max_model_len {max_model_len}: {arch.name} takes at most {limit} tokens; use that or less")
    sizes = capture_sizes if capture_sizes is not None else default_capture_sizes(max_num_seqs, max_num_batched_tokens)
    request = _Request(
        arch,
        device,
        layout,
        weights,
        kv,
        gpu_memory_utilization,
        max_num_batched_tokens,
        max_num_seqs,
        max_model_len,
        block_size,
        () if enforce_eager else sizes,
        graphs_counted,
        groups,
        max_num_batched_tokens if in_flight_tokens is None else in_flight_tokens,
        draft,
    )
    plan = _plan(request)
    if plan.longest_tokens < max_model_len:
        raise InputError(_does_not_fit(request, plan))
    return plan


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low < value <= high:
        raise InputError(f"{name} is {value}; a number above {low:g} and up to {high:g} is expected")


@dataclass(frozen=True)
class _Request:
    """The arguments of `plan_memory`, so that a change of one can be tried."""

    arch: Architecture
    device: Device
    layout: Layout
    weights: Precision | None
    kv: Precision
    gpu_memory_utilization: float
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    block_size: int
    capture_sizes: tuple[int, ...]
    graphs_counted: bool
    groups: KvGroups
    in_flight_tokens: int
    draft: Draft | None


def _plan(request: _Request) -> MemoryPlan:
    """The plan of the stage with fewest blocks; negative blocks when the rest alone does not fit."""
    arch, layout = request.arch, request.layout
    requested = int(request.gpu_memory_utilization * request.device.memory_bytes)
    activation = peak_bytes(arch, layout, request.max_num_batched_tokens, request.max_num_seqs)
    sizes = len(request.capture_sizes)
    plans = []
    draft = request.draft
    of_drafts = [0] * (layout.pipeline - 1) + [0 if draft is None else draft.weight_bytes(layout)]
    for token_bytes, stage_weights, draft_bytes in zip(
        block_token_bytes(arch, request.groups, layout, request.kv, () if draft is None else draft.layers_beside(arch)),
        weight_bytes_per_stage(arch, layout, request.weights),
        of_drafts,
        strict=True,
    ):
        plan = MemoryPlan(
            total_bytes=request.device.memory_bytes,
            requested_bytes=requested,
            weight_bytes=stage_weights,
            activation_bytes=activation,
            context_bytes=CONTEXT_BYTES,
            collective_bytes=COLLECTIVE_BYTES if layout.gpus * layout.data > 1 else 0,
            graph_bytes=(GRAPH_POOL_BYTES + sizes * GRAPH_BYTES_PER_SIZE) if sizes else 0,
            graphs_counted=request.graphs_counted,
            block_bytes=token_bytes * request.block_size,
            num_blocks=0,
            block_size=request.block_size,
            max_model_len=request.max_model_len,
            groups=request.groups,
            in_flight_tokens=request.in_flight_tokens,
            draft_bytes=draft_bytes,
            rotary_bytes=max(0, arch.rotary_bytes - ROTARY_IN_CONTEXT_BYTES),
        )
        used = sum(size for name, size in plan.rows() if name not in ("less than a block", "left to others"))
        used -= 0 if request.graphs_counted else plan.graph_bytes
        plans.append(replace(plan, num_blocks=(requested - used) // plan.block_bytes))
    return min(plans, key=lambda plan: plan.num_blocks)


def _fits(request: _Request) -> bool:
    return _plan(request).longest_tokens >= request.max_model_len


def _does_not_fit(request: _Request, plan: MemoryPlan) -> str:
    """One line: what is missing, and which single changes would make it fit."""
    name = f"{request.arch.name} on {request.device.name} ({request.layout})"
    weights = plan.weight_bytes + plan.draft_bytes
    fixed = weights + plan.rotary_bytes + plan.activation_bytes + plan.context_bytes + plan.collective_bytes
    if plan.num_blocks <= 0:
        problem = (
            f"{name} does not fit: weights {_gib(weights)} and working memory "
            f"{_gib(fixed - weights)} of {_gib(plan.requested_bytes)} usable leave no KV cache"
        )
    else:
        problem = (
            f"{name}: the KV cache holds {plan.longest_tokens} tokens, less than one request of {plan.max_model_len}"
        )
    remedies = list(_remedies(request, plan))
    return f"{problem}; what would fit: {'; '.join(remedies) or 'more GPUs of a larger kind'}"


def _remedies(request: _Request, plan: MemoryPlan) -> Iterator[str]:
    if plan.longest_tokens >= 1024:
        yield f"max_model_len {plan.longest_tokens}"
    layout = request.layout
    for tensor in fitting_tensor_sizes(request.arch, layout.expert > 1):
        larger = layout.model_copy(
            update={"tensor": tensor, "expert": tensor * layout.data if layout.expert > 1 else 1}
        )
        if tensor > layout.tensor and _fits(replace(request, layout=larger)):
            yield f"tensor {tensor}"
            break
    precisions: tuple[Precision, ...] = ("fp8", "int4")
    for precision in precisions:
        if _fits(replace(request, weights=precision)) and request.arch.weight_bytes(
            precision
        ) < request.arch.weight_bytes(request.weights):
            yield f"weights {precision}"
            break
    if request.kv in ("bf16", "fp16") and _fits(replace(request, kv="fp8")):
        yield "kv fp8"
    devices = sorted((load_device(name) for name in known_devices()), key=lambda device: device.memory_bytes)
    for device in devices:
        if device.memory_bytes > request.device.memory_bytes and _fits(replace(request, device=device)):
            yield f"device {device.name}"
            break


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
