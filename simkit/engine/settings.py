"""The engine's settings under vLLM's own names, with vLLM 0.32's defaults."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from simkit.engine.dialect import Dialect, dialect_of
from simkit.engine.draft_kinds import SpeculativeMethod, drafting
from simkit.engine.predictor import Constant, PredictorSpec
from simkit.engine.state import CHUNKS_TO_LAST, DEADLINE, FAIR, FCFS, FEEDBACK, PRIORITY, REMAINING, SHORTEST, Limits
from simkit.errors import InputError
from simkit.models.kv_groups import PLAIN, KvGroups, longest_held

Policy = Literal["fcfs", "priority", "sjf", "srpt", "edf", "fair", "mlfq"]

ORDERINGS: dict[Policy, int] = {
    "fcfs": FCFS,
    "priority": PRIORITY,
    "sjf": SHORTEST,
    "srpt": REMAINING,
    "edf": DEADLINE,
    "fair": FAIR,
    "mlfq": FEEDBACK,
}

# settings that only some disciplines know; one of a user's own may read any of them but the last
_TAKES: dict[str, tuple[str, ...]] = {
    "vllm-v1": (
        "long_prefill_token_threshold",
        "long_prefill_token_threshold_adaptive",
        "prefix_cache_retention_interval",
        "scheduler_reserve_full_isl",
        "speculative_method",
        "speculative_model",
        "speculative_tokens",
        "watermark",
    ),
    "vllm-v0": ("watermark", "preemption_mode"),
    "sarathi": ("watermark",),
    "sglang": (),
    "orca": (),
    "static": (),
}
LONGEST_RETENTION = 1 << 22  # tokens
V0_WATERMARK = 0.01  # of all blocks (vLLM 0.6 block_manager.py)


class EngineSettings(BaseModel):
    """How the engine is started; a field left out has the engine's own default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str = Field(default="vllm-0.32", description="vllm-0.16 to vllm-0.33: whose rules")
    max_num_batched_tokens: int | None = Field(
        default=None, ge=1, le=1 << 22, description="tokens a step; default by device"
    )
    max_num_seqs: int | None = Field(
        default=None, ge=1, le=1 << 16, description="requests in a step; default by device memory"
    )
    max_num_active_seqs: int | None = Field(default=None, ge=1)
    max_model_len: int | None = Field(default=None, ge=2, description="prompt + output; default the model's")
    block_size: int = Field(default=16, ge=1, le=1024, description="tokens a KV block")
    num_gpu_blocks_override: int | None = Field(
        default=None, ge=2, le=1 << 24, description="KV blocks; default by the memory plan"
    )
    gpu_memory_utilization: float = Field(default=0.92, gt=0.0, le=1.0)
    enable_prefix_caching: bool | None = Field(
        default=None, description="default on; off where it is not modelled for layers that keep a state"
    )
    disable_hybrid_kv_cache_manager: bool | None = Field(
        default=None, description="charge layers with windows their whole context; default where vLLM does"
    )
    prefix_cache_retention_interval: int | Literal["dense"] | None = Field(
        default=None, description="tokens between prefixes that windows keep; dense: all, as before vllm-0.29"
    )
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = Field(default=0, ge=0)
    long_prefill_token_threshold_adaptive: bool = Field(
        default=False, description="at least an equal share of the step; nothing without a threshold"
    )
    discipline: str = Field(default="vllm-v1", description="what fills a step; vllm-v1 is the engine's own")
    policy: Policy = Field(default="fcfs", description="order of the queue; fcfs and priority are vLLM's own")
    preemptive: bool = Field(default=False, description="urgent requests take the places of running ones (not in vLLM)")
    async_scheduling: bool = Field(default=True, description="off with pipeline stages")
    preemption_mode: Literal["recompute", "swap"] = Field(default="recompute", description="swap: vllm-v0 only")
    # PCIe 4.0 x16 carries 31.5 GB/s; that copies of pinned memory reach 80 % of it is an assumption
    swap_gb_per_s: float = Field(default=25.0, gt=0.0, le=1e4, allow_inf_nan=False, description="host link, each way")
    predictor: PredictorSpec = Field(default=Constant(), description="what schedulers believe of output lengths")
    max_tokens: int | None = Field(
        default=None, ge=1, description="output tokens that clients ask for at most; default exactly what they get"
    )
    watermark: float | None = Field(default=None, ge=0.0, lt=1.0, description="default 0; vllm-v0 0.01")
    scheduler_reserve_full_isl: bool | None = Field(default=None, description="default on where the version has it")
    enforce_eager: bool = False
    speculative_tokens: int = Field(default=0, ge=0, le=64, description="a draft proposes so many a step; 0: no draft")
    speculative_method: SpeculativeMethod = Field(
        default="ngram", description="what proposes them; all but ngram keep KV of their own"
    )
    speculative_model: str | None = Field(
        default=None, description="the draft: of draft_model a model; else its config.json, default the usual shape"
    )
    acceptance: float | None = Field(
        default=None, ge=0.0, le=1.0, description="chance that a draft is accepted where all before it were"
    )
    acceptance_seed: int = Field(default=0, ge=0, le=1 << 31, description="of the draws of what is accepted")
    draft_step_ms: float | None = Field(
        default=None, ge=0.0, le=1e6, description="to propose the drafts of a step; default by the draft's layers"
    )
    draft_request_ms: float | None = Field(
        default=None, ge=0.0, le=1e6, description="more for each request that gets some"
    )

    @field_validator("engine")
    @classmethod
    def _engine_is_known(cls, name: str) -> str:
        dialect_of(name)
        return name

    @field_validator("prefix_cache_retention_interval", mode="before")
    @classmethod
    def _retention_is_known(cls, interval: object) -> object:
        counts = isinstance(interval, int) and not isinstance(interval, bool) and 0 <= interval <= LONGEST_RETENTION
        if not (counts or interval in (None, "dense")):
            raise ValueError(f"choose 0, a number of tokens up to {LONGEST_RETENTION}, or dense")
        return interval

    def dialect(self) -> Dialect:
        """The rules of the engine version named; InputError for a setting that this version does not have."""
        dialect = dialect_of(self.engine)
        if self.watermark and not dialect.has_watermark:
            raise InputError(f"deployment.engine.watermark={self.watermark}: {self.engine} has none; leave it at 0")
        if self.scheduler_reserve_full_isl and not dialect.has_reserve_full_isl:
            raise InputError(
                f"deployment.engine.scheduler_reserve_full_isl=true: {self.engine} does not have it; leave it out"
            )
        for name in ("max_num_active_seqs", "long_prefill_token_threshold_adaptive"):
            if getattr(self, name) and not dialect.has_active_limits:
                raise InputError(
                    f"deployment.engine.{name}={getattr(self, name)}: {self.engine} does not have it (0.31 does); "
                    "leave it out"
                )
        self._check_retention(dialect)
        self._check_discipline()
        self._check_speculation()
        return dialect

    def _check_retention(self, dialect: Dialect) -> None:
        """InputError for cached prefixes that the version cannot keep so, or that do not end with a block."""
        tokens = self.prefix_cache_retention_interval
        place = f"deployment.engine.prefix_cache_retention_interval={tokens}"
        if tokens is not None and not dialect.thins_windows:
            raise InputError(f"{place}: {self.engine} does not have it (0.29 does); leave it out")
        if isinstance(tokens, int) and tokens % self.block_size > 0:
            raise InputError(f"{place}: not a multiple of block_size={self.block_size}; choose one, 0 or dense")

    def _check_discipline(self) -> None:
        """InputError for a setting that the discipline named does not have."""
        taken = _TAKES.get(self.discipline, _TAKES["vllm-v1"])
        for name in sorted({name for names in _TAKES.values() for name in names} - set(taken)):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                others = " or ".join(discipline for discipline, names in _TAKES.items() if name in names)
                raise InputError(
                    f"deployment.engine.{name}={value}: discipline {self.discipline} does not have it; leave it out, "
                    f"or choose {others}"
                )
        if self.disable_hybrid_kv_cache_manager is False and self.keeps_whole_contexts():
            raise InputError(
                f"deployment.engine.disable_hybrid_kv_cache_manager=false: discipline {self.discipline} keeps whole "
                "contexts; leave it out, or choose vllm-v1"
            )

    def _check_speculation(self) -> None:
        """InputError for half of what speculative decoding needs, or for what it does not go with."""
        if self.speculative_tokens == 0:
            for name in (
                "acceptance",
                "draft_step_ms",
                "draft_request_ms",
                "speculative_method",
                "speculative_model",
            ):
                if getattr(self, name) and getattr(self, name) != type(self).model_fields[name].default:
                    raise InputError(
                        f"deployment.engine.{name}={getattr(self, name)}: goes with speculative_tokens; "
                        "set that to at least 1, or leave this out"
                    )
        elif self.acceptance is None:
            raise InputError(
                f"deployment.engine.speculative_tokens={self.speculative_tokens}: acceptance is missing; "
                "give the chance, 0 to 1, that a draft is accepted"
            )
        elif self.speculative_model is not None and self.speculative_method == "ngram":
            raise InputError(
                f"deployment.engine.speculative_model={self.speculative_model}: ngram looks its drafts up and has no "
                "model; leave it out, or set speculative_method"
            )
        elif self.async_scheduling and self.speculative_method == "ngram":
            # vLLM VllmConfig.__post_init__: their drafts are looked up on the host, in tokens that it must have
            raise InputError(
                f"deployment.engine.speculative_tokens={self.speculative_tokens}: not with asynchronous scheduling by "
                "ngram; set async_scheduling: false, or another speculative_method"
            )

    def limits(
        self,
        num_blocks: int,
        max_model_len: int,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        content_span: int = 1,
        kv_block_bytes: int = 0,
        stages: int = 1,
        groups: KvGroups = PLAIN,
    ) -> Limits:
        """The settings as the loop needs them, with what was left to defaults filled in.

        `kv_block_bytes` of one GPU, which swaps over a link of its own, are needed for swapping only. A pipeline of
        `stages` has a batch for each of them in flight and is not scheduled asynchronously (vLLM's default with
        pipeline stages: VllmConfig.max_concurrent_batches). `groups` are those of the model's layers.

        Raises InputError where vLLM refuses to start: a KV cache smaller than one request of maximum length, or
        without chunked prefill a step smaller than a prompt, and for pipeline stages under another discipline.
        """
        dialect = self.dialect()
        if stages > 1 and self.discipline != "vllm-v1":
            raise InputError(
                f"deployment.layout.pipeline={stages}: discipline {self.discipline} knows no batches on several "
                "stages; use vllm-v1, or pipeline: 1"
            )
        depth = self.pipeline_depth(stages)
        reserve = self.scheduler_reserve_full_isl
        reserve = dialect.has_reserve_full_isl if reserve is None else reserve
        in_flight = in_flight_tokens(dialect, max_num_batched_tokens, depth)
        if (reserve and not dialect.caps_windows) or self.discipline not in _TAKES:
            # admission waits for the whole context in every group, and for ever where that is more than there is; a
            # discipline of the user's may ask for as much
            in_flight = max_model_len
        self._check_holds_one(num_blocks - 1, max_model_len, groups, in_flight)
        watermark = self.watermark
        if watermark is None:
            watermark = V0_WATERMARK if self.discipline == "vllm-v0" else 0.0
        swap = self.preemption_mode == "swap"
        limits = Limits(
            max_num_batched_tokens=max_num_batched_tokens,
            max_running=min(max_num_seqs, self.max_num_active_seqs or max_num_seqs),
            max_model_len=max_model_len,
            block_size=self.block_size,
            long_prefill_token_threshold=self.long_prefill_token_threshold,
            adaptive_long_prefill=self.long_prefill_token_threshold_adaptive,
            lone_request_uncapped=dialect.lone_request_uncapped,
            chunked_prefill=self.enable_chunked_prefill,
            prefix_caching=self.enable_prefix_caching is not False,
            ordering=ORDERINGS[self.policy],
            preemptive=self.preemptive,
            watermark_blocks=int(watermark * num_blocks),
            reserve_full_isl=reserve,
            uncached_free_to_front=dialect.uncached_free_to_front,
            passed_over_counts=dialect.passed_over_counts,
            serves_past_self_victim=dialect.serves_past_self_victim,
            content_span=content_span,
            pipeline_depth=depth,
            swap_block_ns=max(1, round(kv_block_bytes / self.swap_gb_per_s)) if swap else 0,
            speculative_tokens=self.speculative_tokens,
            acceptance=float(self.acceptance or 0.0),
            acceptance_seed=self.acceptance_seed,
            registers_accepted=dialect.registers_accepted,
            draft_padding=dialect.draft_padding,
            draft_ns=round(1e6 * (self.draft_step_ms or 0.0)),
            draft_request_ns=round(1e6 * (self.draft_request_ms or 0.0)),
            stages=stages,
        )
        limits = drafting(limits, self.speculative_method, dialect, max_num_seqs)
        self._check_step(limits)
        if groups.kept_states:
            self._check_states(limits, dialect)
        return windowed(limits, groups, dialect, self.retention_tokens(dialect, groups))

    def _check_step(self, limits: Limits) -> None:
        """InputError for a step too small for its drafts, or for a prompt where those are not cut."""
        kept = limits.draft_reserve + limits.draft_slots
        place = f"deployment.engine.max_num_batched_tokens={limits.max_num_batched_tokens}"
        if not self.enable_chunked_prefill and limits.max_num_batched_tokens - kept < limits.max_model_len:
            less = f"less {kept} for drafts, " if kept else ""
            raise InputError(
                f"{place}: {less}smaller than max_model_len={limits.max_model_len} without "
                "chunked prefill; raise it or set enable_chunked_prefill: true"
            )
        # vLLM VllmConfig._set_max_num_scheduled_tokens
        least = max(kept, limits.lookahead_tokens if self.dialect().hashes_next_token else 0)
        if limits.max_num_batched_tokens <= least:
            raise InputError(
                f"{place}: drafts by {self.speculative_method} take {least} of a step's tokens; raise it, or lower "
                "max_num_seqs or speculative_tokens"
            )

    def _check_states(self, limits: Limits, dialect: Dialect) -> None:
        """InputError where vLLM refuses to cache prefixes with the states that layers keep."""
        if not limits.chunked_prefill:
            raise InputError(
                "deployment.engine.enable_chunked_prefill=false: prefixes of layers that keep a state are cached with "
                "chunked prefill only; leave it out, or set enable_prefix_caching: false"
            )
        threshold = limits.long_prefill_token_threshold or limits.block_size
        if dialect.state_chunks == CHUNKS_TO_LAST and min(limits.max_num_batched_tokens, threshold) < limits.block_size:
            raise InputError(
                f"deployment.engine.max_num_batched_tokens={limits.max_num_batched_tokens}: {self.engine} wants room "
                f"for a block of {limits.block_size} tokens in every chunk (long_prefill_token_threshold, too); raise "
                "it, or set enable_prefix_caching: false"
            )

    @property
    def tells_draft_time(self) -> bool:
        """Whether the time of proposing is told, and not to be derived."""
        return self.draft_step_ms is not None or self.draft_request_ms is not None

    def retention_tokens(self, dialect: Dialect, groups: KvGroups) -> int | None:
        """Tokens between prefixes that windows keep; None: they keep all. InputError where vLLM refuses to start."""
        tokens = self.prefix_cache_retention_interval
        if isinstance(tokens, int) and tokens > 0 and (groups.window == 0 or groups.chunked):
            raise InputError(
                f"deployment.engine.prefix_cache_retention_interval={tokens}: no layer's KV is kept by a sliding "
                "window; leave it out"
            )
        if tokens is None:
            return 0 if dialect.thins_windows else None
        return None if tokens == "dense" else tokens

    def pipeline_depth(self, stages: int) -> int:
        """Batches in flight at most."""
        return stages if stages > 1 else 2 if self.async_scheduling else 1

    def keeps_whole_contexts(self) -> bool:
        """Whether KV memory is charged whole contexts even where layers see windows of them.

        vLLM's hybrid KV cache manager is on unless it is disabled (VllmConfig). What the other disciplines of ours
        stand for has none, or one of another kind.
        """
        others = self.discipline in _TAKES and self.discipline != "vllm-v1"
        return bool(self.disable_hybrid_kv_cache_manager) or others

    def _check_holds_one(self, usable_blocks: int, max_model_len: int, groups: KvGroups, in_flight_tokens: int) -> None:
        """InputError if a request of maximum length would never get the blocks that it needs."""
        usable_tokens = longest_held(usable_blocks, groups, self.block_size, in_flight_tokens, max_model_len)
        if usable_tokens < max_model_len:
            raise InputError(
                f"deployment.engine.max_model_len={max_model_len}: the KV cache holds {usable_tokens} tokens; "
                f"set max_model_len to at most {usable_tokens}, or more GPUs, or a smaller KV precision"
            )


def in_flight_tokens(dialect: Dialect, max_num_batched_tokens: int, pipeline_depth: int) -> int:
    """Tokens beside its window whose blocks a request may hold (vLLM max_in_flight_tokens; before, those of a step)."""
    return max_num_batched_tokens * (pipeline_depth if dialect.frees_settled else 1)


def windowed(limits: Limits, groups: KvGroups, dialect: Dialect, retention_tokens: int | None = None) -> Limits:
    """The same limits for a model whose layers are dealt to groups, some of which see windows or keep states.

    `retention_tokens` lie between prefixes that stay cached for them (KVCacheConfig.prefix_cache_retention_interval of
    vLLM); None: all do.
    """
    if groups.window == 0:
        return limits._replace(full_groups=groups.full, state_blocks=groups.state)
    if groups.kept_states:
        limits = limits._replace(state_chunks=dialect.state_chunks, state_checkpoints=groups.checkpoints)
    in_flight = in_flight_tokens(dialect, limits.max_num_batched_tokens, limits.pipeline_depth)
    cap = groups.window_cap_blocks(limits.block_size, in_flight, limits.max_model_len)
    return limits._replace(
        full_groups=groups.full,
        window_groups=groups.window,
        windows_first=groups.windows_first,
        window_tokens=groups.window_tokens,
        chunked_window=groups.chunked,
        window_cap_blocks=cap if dialect.caps_windows else 0,
        uncached_leave_to_front=dialect.uncached_leave_to_front,
        frees_settled=dialect.frees_settled,
        retention_blocks=1 if retention_tokens is None else retention_tokens // limits.block_size,
    )
