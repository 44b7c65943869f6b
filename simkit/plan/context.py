"""Traffic that uses a context to its end, and the other ways of answering the same questions."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from simkit.engine.deployment import ReplicaSpec
from simkit.engine.settings import windowed as with_windows
from simkit.errors import InputError
from simkit.metrics.slo import Promise, Target
from simkit.models.architecture import Architecture
from simkit.models.kv_groups import KvGroups
from simkit.models.steptables import NOT_ALONE, StepTables, grid_values
from simkit.plan.cost import Prices
from simkit.workloads.streams import stream
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

WHOLE, RETRIEVED, WINDOWED = "whole", "retrieval", "window"  # ways of answering a question about a long document


class Retrieval(BaseModel):
    """Answering from chunks of a document that a search found, not from the whole of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunks: int = Field(default=8, ge=1, le=10_000)
    chunk_tokens: int = Field(default=512, ge=1, le=1_000_000)
    question_tokens: int = Field(default=200, ge=1, le=1_000_000, description="question and instructions")
    latency_s: float = Field(default=0.2, ge=0, le=3600, allow_inf_nan=False, description="before the prompt is known")
    usd_per_thousand: float = Field(default=0.1, ge=0, le=1e6, allow_inf_nan=False, description="price of searches")

    @property
    def prompt_tokens(self) -> int:
        """Of a request answered so."""
        return self.question_tokens + self.chunks * self.chunk_tokens


class ContextSettings(BaseModel):
    """The `context` section of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lengths: tuple[int, ...] = Field(default=(4096, 8192, 16384, 32768, 65536, 131072), min_length=1, max_length=32)
    rates: tuple[float, ...] = Field(default=(), max_length=32, description="of all replicas; default the workload's")
    kv: tuple[str, ...] = Field(default=(), max_length=8, description="default the deployment's")
    long_share: float = Field(default=0.05, gt=0, le=1, description="of the requests use the context to its end")
    retrieval: Retrieval | None = None
    window_tokens: int | None = Field(
        default=None, ge=16, le=10_000_000, description="a sliding window to compare with"
    )
    replicas: int = Field(default=64, ge=1, le=10_000, description="the most")
    prices: Prices = Field(default_factory=Prices)

    @field_validator("lengths")
    @classmethod
    def _lengths_rise(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if list(lengths) != sorted(set(lengths)) or lengths[0] < 16:
            raise ValueError("lengths must rise, from 16 tokens on")
        return lengths


def context_workload(workload: Workload, max_context: int, long_share: float, seed: int = 0) -> Workload:
    """The workload where `long_share` of the requests use the context to its end, and none is longer.

    The same requests are the long ones at every length, so that lengths are compared on like traffic. Prompts are cut
    or stretched, answers kept (at most half of the context). What prompts shared is dropped: nobody knows what a longer
    prompt would share.
    """
    long = stream(seed).random(len(workload)) < long_share
    output = np.minimum(workload.output_tokens, max_context // 2).astype(np.int64)
    room = max_context - output
    prompt = np.where(long, room, np.minimum(workload.prompt_tokens, room))
    return replace(
        workload,
        prompt_tokens=prompt.astype(np.int32),
        output_tokens=output.astype(np.int32),
        prefixes=None,
        transforms=(*workload.transforms, f"context({max_context}, {long_share:g} long)"),
    )


def longest(workload: Workload, max_context: int) -> NDArray[np.bool_]:
    """[n] which requests use the context to its end."""
    return workload.prompt_tokens.astype(np.int64) + workload.output_tokens >= max_context


def with_retrieval(workload: Workload, max_context: int, how: Retrieval) -> Workload:
    """The same questions, the long ones answered from chunks; they reach the model after the search, so much later."""
    long = longest(workload, max_context)
    prompt = np.where(long, np.minimum(workload.prompt_tokens, how.prompt_tokens), workload.prompt_tokens)
    arrival = workload.arrival_us + np.where(long, round(1e6 * how.latency_s), 0)
    later = replace(workload, prompt_tokens=prompt.astype(np.int32), arrival_us=arrival)
    return selected(later, np.argsort(arrival, kind="stable"))


def after(promise: Promise, seconds: float) -> Promise:
    """What is left of a promise to the first token or the end when `seconds` have passed; InputError if nothing is."""

    def less(target: Target) -> Target:
        if target.metric not in ("ttft", "e2e"):
            return target
        if target.limit_s <= seconds:
            raise InputError(f"retrieval takes {seconds:g} s, and {target.key} promises {target.limit_s:g} s")
        return replace(target, limit_s=target.limit_s - seconds)

    return replace(promise, targets=tuple(map(less, promise.targets)), limits=tuple(map(less, promise.limits)))


def check_window(arch: Architecture, window: int) -> None:
    """Pass if all layers can be told to see `window` tokens; InputError where some see less by themselves."""
    own = max((layer.attention.window_tokens or 0 for layer in arch.kinds), default=0)
    if own and window > own:
        raise InputError(
            f"context.window_tokens={window}: layers of {arch.name} see {own} tokens by themselves, "
            f"and windows of two sizes are not modelled; give {own} or fewer"
        )


def windowed(spec: ReplicaSpec, window: int) -> ReplicaSpec:
    """The replica of a model whose layers all attend to the last `window` tokens only; `check_window` has passed.

    Steps take the time of attention to `window` tokens. A prefill chunk is taken to see `window` tokens before it,
    which is exact for its first token and too much for later ones of a chunk longer than the window. KV that slides out
    of the window is given back, as the engine does for layers that have one (vLLM's SlidingWindowSpec); where it keeps
    whole contexts for these, it does here.
    """
    tables, settings = spec.tables, spec.deployment.engine
    past = grid_values(spec.limits.max_model_len)[: tables.prefill_ns.shape[1]]
    within = int(np.searchsorted(past, window))
    reach = np.minimum(np.arange(tables.prefill_ns.shape[1]), within)
    changed = tables._replace(
        decode_ns=np.zeros((2, 2)),
        decode_window_ns=_of_all_layers(tables),
        prefill_ns=tables.prefill_ns[:, reach],
        window_tokens=window,
        alone_ns=NOT_ALONE,  # no context is longer than the window
    )
    if settings.keeps_whole_contexts():
        return replace(spec, tables=changed)
    groups = KvGroups(full=0, window=spec.memory.groups.count, windows_first=True, window_tokens=window)
    dialect = settings.dialect()
    limits = with_windows(spec.limits, groups, dialect, settings.retention_tokens(dialect, groups))
    return replace(spec, tables=changed, limits=limits, memory=replace(spec.memory, groups=groups))


def windowed_of(spec_of: Callable[[int], ReplicaSpec], length: int, window: int) -> ReplicaSpec:
    """The windowed replica of maximum context `length`, also where KV memory holds the windows but no whole context.

    `spec_of` gives the replica of a maximum context, and refuses one of which it does not hold a whole request; so the
    replica is worked out at the window, beyond which no table is read, and then allowed longer requests.

    Raises InputError: what `spec_of` says of `length`, where whole contexts are kept or waited for or something else
    than memory is in the way; or that not even the windows fit.
    """
    try:
        return windowed(spec_of(length), window)
    except InputError as refused:
        points = grid_values(window)
        enough = int(points[np.searchsorted(points, window)])
        if enough >= length:
            raise
        try:
            short = spec_of(enough)
        except InputError:
            raise refused from None
        if not _slides(short) or length > short.architecture.max_context_tokens:
            raise
    spec = windowed(_lengthened(short, length), window)
    needed = spec.blocks_of(length)
    if needed > spec.num_blocks - 1:
        raise InputError(
            f"context.window_tokens={window}: a request of {length} tokens may hold {needed} blocks of KV (its windows "
            f"and the tokens of the steps under way), and there are {spec.num_blocks - 1}; give a smaller window, or a "
            "smaller deployment.engine.max_num_batched_tokens"
        )
    return spec


def _slides(spec: ReplicaSpec) -> bool:
    """Whether requests are admitted by what their windows hold, and computed in chunks."""
    settings = spec.deployment.engine
    if settings.keeps_whole_contexts() or settings.discipline != "vllm-v1" or not settings.enable_chunked_prefill:
        return False
    return settings.dialect().caps_windows or not spec.limits.reserve_full_isl


def _lengthened(spec: ReplicaSpec, length: int) -> ReplicaSpec:
    """The replica with longer requests allowed; its prefill table goes on with its last column."""
    tables, points = spec.tables, len(grid_values(length))
    more = points - tables.prefill_ns.shape[1]
    engine = spec.deployment.engine.model_copy(update={"max_model_len": length})
    return replace(
        spec,
        deployment=spec.deployment.model_copy(update={"engine": engine}),
        limits=spec.limits._replace(max_model_len=length),
        memory=replace(spec.memory, max_model_len=length),
        tables=tables._replace(prefill_ns=np.pad(tables.prefill_ns, ((0, 0), (0, more)), mode="edge")),
    )


def _of_all_layers(tables: StepTables) -> NDArray[np.float64]:
    """Attention of the decodes of layers with and without a window of their own, as one table."""
    if not tables.window_tokens:
        return tables.decode_ns
    if tables.decode_ns.shape != tables.decode_window_ns.shape:  # no layer is without one
        return tables.decode_window_ns
    return tables.decode_ns + tables.decode_window_ns
