"""What a recorded schedule (`vllm-golden-1`) must hold before it is replayed: its settings and requests, within bounds.

A setting that this engine does not know is refused unless it is off (null, false, 0): it might be why a schedule
differs.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_TOKENS = 1 << 26  # of prompts and outputs in one file
_MOST_TABLE = 1 << 28  # entries of the block table
_MOST_STEP = 1 << 30
_MOST_LENGTH = 1 << 20  # tokens of a segment: token ids of neighbouring seeds would meet beyond

Step = Annotated[int, Field(ge=0, le=_MOST_STEP)]
Source = Annotated[int, Field(strict=True, ge=0, le=1 << 40)]
Count = Annotated[int, Field(strict=True, ge=0, le=_MOST_LENGTH)]
# JSON has lists only, which are no tuples where types are strict
Segment = Annotated[tuple[Literal["s", "o"], Source, Count], Field(strict=False)]


class _Row(BaseModel):
    """A row of a recording; keys that it does not know may be there if they are off."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_off(cls, row: object) -> object:
        if not isinstance(row, dict):
            return row
        return {key: value for key, value in row.items() if key in cls.model_fields or value not in (None, False, 0)}


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

    @model_validator(mode="after")
    def _starts(self) -> Self:
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than max_model_len="
                f"{self.max_model_len} without chunked prefill"
            )
        if self.max_num_seqs * (-(-self.max_model_len // self.block_size)) > _MOST_TABLE:
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
        holds = (self.config.num_gpu_blocks - 1) * self.config.block_size
        for q in self.requests:
            if min(q.prompt + q.out - 1, self.config.max_model_len) > holds:
                raise ValueError(f"request {q.id}: {q.prompt + q.out} tokens are more than the {holds} of all blocks")
            if q.prompt >= self.config.max_model_len:
                raise ValueError(f"request {q.id}: {q.prompt} prompt tokens leave no room in max_model_len")
            for kind, source, _ in q.segs:
                if kind == "o" and source not in by_id:
                    raise ValueError(
                        f"request {q.id}: segment of request {source}'s output, and there is no such request"
                    )
        if sum(q.prompt + q.out for q in self.requests) > MOST_TOKENS:
            raise ValueError(f"requests: more than {MOST_TOKENS} tokens in all; record in several files")
        return self
