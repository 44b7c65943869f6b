"""What a recorded schedule (`vllm-golden-1`) must hold before it is replayed: its settings and requests, within bounds.

A setting that this engine does not know is refused unless it is off (null, false, 0): it might be why a schedule
differs.
"""

from typing import Annotated, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simkit.engine.draft_kinds import SpeculativeMethod
from simkit.models.kv_groups import PLAIN, STATE_REACH, KvGroups, longest_held

MOST_TOKENS = 1 << 26  # of prompts and outputs in one file
_MOST_TABLE = 1 << 28  # entries of the block table
_MOST_STEP = 1 << 30
_MOST_LENGTH = 1 << 20  # tokens of a segment: token ids of neighbouring seeds would meet beyond

Step = Annotated[int, Field(ge=0, le=_MOST_STEP)]
Source = Annotated[int, Field(strict=True, ge=0, le=1 << 40)]
Count = Annotated[int, Field(strict=True, ge=0, le=_MOST_LENGTH)]
# JSON has lists only, which are no tuples where types are strict
Segment = Annotated[tuple[Literal["s", "o"], Source, Count], Field(strict=False)]


Reach = Annotated[tuple[Literal["full", "window", "chunk", "state"], Count], Field(strict=False)]


class _Row(BaseModel):
    """A row of a recording; keys that it does not know may be there if they are off."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_off(cls, row: object) -> object:
        if not isinstance(row, dict):
            return row
        return {key: value for key, value in row.items() if key in cls.model_fields or value not in (None, False, 0)}


def groups_of(reaches: object, caching: bool = False, checkpoints: bool = False) -> KvGroups:
    """The KV cache groups that a recording lists; ValueError for a list that is not of one window, or not in order.

    `reaches`: [kind, tokens] of each group in order, `full`, `window`, `chunk` or `state`; None: one that keeps
    everything. `caching`: prefixes are cached, and states with them; `checkpoints`: also from inside a chunk.
    """
    if reaches is None:
        return PLAIN
    listed = [(str(kind), int(tokens)) for kind, tokens in cast(list[tuple[str, int]], reaches)]
    kinds = [reach for reach in listed if reach[0] != "state"]
    states = len(listed) - len(kinds)
    if states and caching and kinds and all(kind == "full" for kind, _ in kinds):
        first = listed[0][0] == "state"
        return KvGroups(len(kinds), states, first, STATE_REACH, kept_states=True, checkpoints=checkpoints)
    windows = [reach for reach in kinds if reach[0] != "full"]
    order = [reach[0] == "full" for reach in kinds]
    if len(set(windows)) > 1 or any(tokens < 1 for _, tokens in windows):
        raise ValueError("kv_cache_groups: windows of one size of at least 1 token are known")
    if order != sorted(order) and order != sorted(order, reverse=True):
        raise ValueError("kv_cache_groups: those of one kind stand together, as vLLM makes them")
    if states and (windows or not kinds):
        raise ValueError("kv_cache_groups: states beside windows, or alone")
    if not windows:
        if len(kinds) > 1 and not states:
            raise ValueError("kv_cache_groups: several groups without a window")
        return KvGroups(full=len(kinds), state=states)
    return KvGroups(
        full=len(kinds) - len(windows),
        window=len(windows),
        windows_first=kinds[0][0] != "full",
        window_tokens=windows[0][1],
        chunked=windows[0][0] == "chunk",
    )


class RecordedConfig(_Row):
    """The scheduler's settings, under vLLM's own names; what vLLM refuses to start with is refused here."""

    block_size: int = Field(ge=1, le=1 << 12)
    num_gpu_blocks: int = Field(ge=2, le=1 << 22)
    max_num_batched_tokens: int = Field(ge=1, le=1 << 22)
    max_num_seqs: int = Field(ge=1, le=1 << 16)
    max_model_len: int = Field(ge=2, le=1 << 22)
    long_prefill_token_threshold: int = Field(ge=0)
    long_prefill_token_threshold_adaptive: bool = False
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    policy: Literal["fcfs", "priority"]
    async_scheduling: bool
    watermark: float = Field(ge=0.0, lt=1.0)
    scheduler_reserve_full_isl: bool
    max_num_active_seqs: int | None = Field(default=None, ge=1)
    kv_cache_groups: list[Reach] | None = Field(default=None, min_length=1, max_length=64)
    prefix_cache_retention_interval: int | None = Field(default=None, ge=0, le=1 << 22)
    prefill_checkpoints: bool = False
    num_speculative_tokens: int = Field(default=0, ge=0, le=64)
    speculative_method: SpeculativeMethod = "ngram"
    acceptance: float | None = Field(default=None, ge=0.0, le=1.0)
    acceptance_seed: int = Field(default=0, ge=0, le=(1 << 32) - 1)

    @property
    def groups(self) -> KvGroups:
        """The KV cache groups; ValueError for a list that is not of one window, or not in order."""
        return groups_of(self.kv_cache_groups, self.enable_prefix_caching, self.prefill_checkpoints)

    @model_validator(mode="after")
    def _starts(self) -> Self:
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than max_model_len="
                f"{self.max_model_len} without chunked prefill"
            )
        if self.num_speculative_tokens > 0 and self.acceptance is None:
            raise ValueError(f"num_speculative_tokens={self.num_speculative_tokens} needs acceptance")
        if self.num_speculative_tokens > 0 and self.async_scheduling and self.speculative_method == "ngram":
            raise ValueError("speculative_method=ngram goes without async_scheduling")
        if (self.prefix_cache_retention_interval or 0) % self.block_size > 0:
            raise ValueError(
                f"prefix_cache_retention_interval={self.prefix_cache_retention_interval} is no multiple of "
                f"block_size={self.block_size}"
            )
        groups = self.groups
        if self.prefill_checkpoints and not groups.kept_states:
            raise ValueError("prefill_checkpoints without states that are cached")
        if (groups.state or groups.kept_states) and self.num_speculative_tokens:
            raise ValueError("kv_cache_groups: states with drafts, which is not modelled")
        if groups.count * self.max_num_seqs * (-(-self.max_model_len // self.block_size)) > _MOST_TABLE:
            raise ValueError("max_num_seqs requests of max_model_len tokens have too many blocks to replay")
        return self


class RecordedRequest(_Row):
    """One request of a recording."""

    id: int = Field(ge=0, le=1 << 32)
    arr: Step
    segs: list[Segment] = Field(min_length=1)
    out: int = Field(ge=1, le=_MOST_LENGTH)
    max_tokens: int = Field(ge=1, le=1 << 30)
    prio: int = Field(default=0, ge=-(1 << 31), lt=1 << 31)
    abort: Step | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.out > self.max_tokens:
            raise ValueError(f"out={self.out} is more than max_tokens={self.max_tokens}")
        if self.prompt == 0:
            raise ValueError("segs: an empty prompt")
        return self

    @property
    def prompt(self) -> int:
        """Its prompt's tokens."""
        return sum(tokens for _, _, tokens in self.segs)


class Recorded(BaseModel):
    """The settings and the requests, which must go together."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config: RecordedConfig
    requests: list[RecordedRequest]

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        by_id = {q.id: q for q in self.requests}
        if len(by_id) < len(self.requests):
            raise ValueError("requests: an id is there twice")
        config = self.config
        groups = config.groups
        usable = config.num_gpu_blocks - 1
        step, longest = config.max_num_batched_tokens, config.max_model_len
        holds = longest_held(usable, groups, config.block_size, step, longest)
        holds = max(holds, (usable - groups.state) // groups.count * config.block_size)
        for q in self.requests:
            if min(q.prompt + q.out - 1, config.max_model_len) > holds:
                raise ValueError(f"request {q.id}: {q.prompt + q.out} tokens are more than the {holds} of all blocks")
            if q.prompt >= config.max_model_len:
                raise ValueError(f"request {q.id}: {q.prompt} prompt tokens leave no room in max_model_len")
            for kind, source, _ in q.segs:
                if kind == "o" and source not in by_id:
                    raise ValueError(
                        f"request {q.id}: segment of request {source}'s output, and there is no such request"
                    )
        if sum(q.prompt + q.out for q in self.requests) > MOST_TOKENS:
            raise ValueError(f"requests: more than {MOST_TOKENS} tokens in all; record in several files")
        return self
