"""Read measured runs of a server under inference-perf's shared-prefix load: a JSON list, one object a run.

Times in the file are ms as the client saw them. `mean_output_tokens_implied` is what was generated on average, and
stands for the output length; `output_len`, what was asked for, is used only where it is missing.
"""

import json
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simkit.bounded_file import read_bounded
from simkit.errors import InputError
from simkit.invalid import first_error

LARGEST_FILE_BYTES = 64 << 20
MOST_RUNS = 10_000
MOST_REQUESTS = 5_000_000  # of one run

Ms = Annotated[float, Field(ge=0.0, le=1e9, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1 << 31)]
Gpus = Annotated[int, Field(ge=1, le=1024)]
Name = Annotated[str, Field(min_length=1, max_length=300)]
Rate = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0.0, le=1e7, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Open(_Part):
    """A part whose unknown keys are kept, to be named beside the result: more may be recorded than is used."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_missing(cls, tree: object) -> object:
        return {key: value for key, value in tree.items() if value is not None} if isinstance(tree, dict) else tree


class MeasuredLatency(_Open):
    """What the client saw of a stage or of all; a figure that was not recorded is left out."""

    ttft_mean_ms: Ms | None = None
    ttft_p90_ms: Ms | None = None
    ttft_p99_ms: Ms | None = None
    itl_mean_ms: Ms | None = None  # (E2E - TTFT) / (output tokens - 1): TPOT in this project's words
    e2e_mean_ms: Ms | None = None
    e2e_p90_ms: Ms | None = None
    e2e_p99_ms: Ms | None = None


class SharedPrefixLoad(_Part):
    """inference-perf's `shared_prefix` data and its load stages, [requests/s, s], one after the other."""

    system_prompts: Count
    users_per_prompt: Count
    system_prompt_len: Annotated[int, Field(ge=0, le=1 << 20)]
    question_len: Count
    output_len: Count
    stages: tuple[tuple[Rate, Seconds], ...] = Field(min_length=1, max_length=100)

    @property
    def users(self) -> int:
        """How many different prompts there are."""
        return self.system_prompts * self.users_per_prompt

    @property
    def prompt_tokens(self) -> int:
        """Tokens of every prompt."""
        return self.system_prompt_len + self.question_len

    def stage_requests(self) -> list[int]:
        """Requests of each stage: rate x duration, rounded down (inference-perf `ConstantLoadTimer`)."""
        return [int(rate * seconds + 1e-9) for rate, seconds in self.stages]


class MeasuredRun(_Open):
    """One run: what was deployed, what was sent, what the client measured."""

    id: Name
    model: Name
    hardware: Name
    tensor_parallel: Gpus = 1
    pipeline_parallel: Gpus = 1
    data_parallel: Gpus | None = None
    enable_expert_parallel: bool = False
    weight_precision: Name | None = None  # left out: as the repository's name says, else as published
    kv_cache_dtype: Name = "auto"
    max_num_batched_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    max_num_seqs: int | None = Field(default=None, ge=1, le=1 << 16)
    max_model_len: int | None = Field(default=None, ge=2, le=1 << 24)
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    enforce_eager: bool = False
    gpu_memory_utilization: float = Field(default=0.9, gt=0.0, le=1.0)
    cpu_offload: bool = False
    kv_blocks: int | None = Field(default=None, ge=2, le=1 << 24)  # of 16 tokens, of whole contexts
    workload: str = Field(default="", max_length=300)
    workload_spec: SharedPrefixLoad
    mean_output_tokens_implied: float | None = Field(default=None, ge=1.0, le=1e7, allow_inf_nan=False)
    measured: dict[str, MeasuredLatency] = Field(min_length=1, max_length=101)  # whole, stage0, stage1, ..

    @property
    def output_tokens(self) -> float:
        """Tokens generated on average."""
        return self.mean_output_tokens_implied or float(self.workload_spec.output_len)

    @property
    def unused(self) -> tuple[str, ...]:
        """Keys that are not known here."""
        inside = {key for latency in self.measured.values() for key in latency.model_extra or {}}
        return tuple(sorted({*(self.model_extra or {}), *inside}))


class UnreadRun(NamedTuple):
    """A run of a file that is not as a run should be, and why."""

    id: str
    reason: str


def read_measured_runs(path: Path) -> list[MeasuredRun]:
    """The runs of a file, in its order.

    Raises:
        InputError: with file, run and field, for a file that cannot be read, is too large, is no list of runs, names a
            run twice, or holds a field that is missing or out of range, or a field of the load that is not known.
    """
    found = runs_of(path)
    for run in found:
        if isinstance(run, UnreadRun):
            raise InputError(run.reason)
    return [run for run in found if isinstance(run, MeasuredRun)]


def runs_of(path: Path) -> list[MeasuredRun | UnreadRun]:
    """The runs of a file, in its order; a bad one stands there with the reason.

    Raises:
        InputError: the file cannot be read, is too large, is no list of runs, names a run twice, or has bad ones only.
    """
    tree = _json(path)
    if not isinstance(tree, list) or not tree:
        raise InputError(f"{path}: holds no list of runs; a JSON list with an object a run is expected")
    if len(tree) > MOST_RUNS:
        raise InputError(f"{path}: holds {len(tree):,} runs; at most {MOST_RUNS:,} are read, split the file")
    runs = [_run_or_why(path, number, item) for number, item in enumerate(tree)]
    if isinstance(runs[0], UnreadRun) and all(isinstance(run, UnreadRun) for run in runs):
        raise InputError(runs[0].reason)
    seen: set[str] = set()
    for run in runs:
        if run.id in seen:
            raise InputError(f"{path}: id={run.id!r}: two runs have it; give each its own")
        seen.add(run.id)
    return runs


def _json(path: Path) -> object:
    raw = read_bounded(path, LARGEST_FILE_BYTES, "name a file of measured runs")
    try:
        tree: object = json.loads(raw)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not JSON; a list with an object a run is expected") from None
    return tree


def _run_or_why(path: Path, number: int, item: object) -> MeasuredRun | UnreadRun:
    name = str(item.get("id") or "")[:100] if isinstance(item, dict) else ""
    place = f"{path}: run {name!r}" if name else f"{path}: run {number}"
    try:
        return _run(place, item)
    except InputError as error:
        return UnreadRun(name or f"run {number}", str(error))


def _run(place: str, item: object) -> MeasuredRun:
    try:
        run = MeasuredRun.model_validate(item)
    except ValidationError as error:
        raise InputError(first_error(error, place, _known_names())) from None
    stages = len(run.workload_spec.stages)
    known = {"whole", *(f"stage{stage}" for stage in range(stages))}
    unknown = sorted(set(run.measured) - known)
    if unknown:
        raise InputError(
            f"{place}: measured.{unknown[0][:60]}: the load has {stages} stages; use whole or stage0 and up"
        )
    if sum(run.workload_spec.stage_requests()) > MOST_REQUESTS:
        raise InputError(f"{place}: workload_spec.stages: more than {MOST_REQUESTS:,} requests; shorten the stages")
    if min(run.workload_spec.stage_requests()) < 1:
        raise InputError(f"{place}: workload_spec.stages: one of them sends no request; raise its rate or duration")
    return run


def _known_names() -> set[str]:
    return {name for part in (MeasuredRun, SharedPrefixLoad, MeasuredLatency) for name in part.model_fields}
