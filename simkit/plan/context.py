"""Traffic that uses a context to its end, and the other ways of answering the same questions."""

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


def _of_all_layers(tables: StepTables) -> NDArray[np.float64]:
    """Attention of the decodes of layers with and without a window of their own, as one table."""
    if not tables.window_tokens:
        return tables.decode_ns
    if tables.decode_ns.shape != tables.decode_window_ns.shape:  # no layer is without one
        return tables.decode_window_ns
    return tables.decode_ns + tables.decode_window_ns
