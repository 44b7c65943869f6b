"""One YAML holds what is deployed, what arrives and what is promised; flags overrule it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from simkit.cli.console import people
from simkit.cli.profile import with_profile
from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.errors import InputError
from simkit.invalid import first_error
from simkit.metrics.slo import targets
from simkit.workloads.arrivals import arrival_spec
from simkit.workloads.generate import GeneratorSpec, generate, load_spec
from simkit.workloads.own_columns import TimeUnit, own_format
from simkit.workloads.presets import preset
from simkit.workloads.readers import read_workload
from simkit.workloads.transform import rate_to, take, time_scale, without_lead_in
from simkit.workloads.workload import Workload
from simkit.yaml_file import read_mapping

CONFIGURATION = "a configuration is a YAML file that maps deployment, workload, slo"

_STRICT = ConfigDict(extra="forbid", frozen=True)


class WorkloadSource(BaseModel):
    """Where the requests come from: exactly one of a trace, a bundled preset, a generator."""

    model_config = _STRICT

    trace: Path | None = Field(default=None, description="a file; its format is recognised")
    format: str | None = Field(default=None, description="the trace's format, where it is not recognised")
    columns: dict[str, str] | None = Field(
        default=None, description="of a CSV with names of its own: {arrival: ts, prompt: in, output: out}"
    )
    time_unit: TimeUnit = Field(default="s", description="of the column arrival: s, ms, us, or clock for dates")
    sort: bool = False
    skip_bad_rows: bool = False
    spread_ticks: bool = Field(default=False, description="spread arrivals that were rounded to coarse ticks")
    preset: str | None = None
    generate: GeneratorSpec | None = Field(default=None, description="a generator's spec, or the path of its YAML")
    arrivals: str | None = Field(default=None, description="an arrival process in place of the source's own times")
    cv: float | None = Field(default=None, description="of the gaps of that process, where it takes one")
    requests: int | None = Field(default=None, ge=1, description="at most so many; how many to draw from a preset")
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="requests/s, by scaling all gaps")
    time_scale: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="factor on all gaps")

    @field_validator("generate", mode="before")
    @classmethod
    def _spec_file(cls, given: object) -> object:
        return load_spec(given) if isinstance(given, str | Path) else given

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("trace", "preset", "generate") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of trace, preset and generate; found {found}")
        of_traces = ("format", "columns", "sort", "skip_bad_rows", "spread_ticks")
        idle = [name for name in of_traces if getattr(self, name)] if self.trace is None else []
        if idle:
            raise ValueError(f"{idle[0]}: is of traces, and the source is a {given[0]}; leave it out")
        if self.columns is not None and self.format is not None:
            raise ValueError("columns go in place of a format")
        if self.time_unit != "s" and self.columns is None:
            raise ValueError("time_unit goes with columns, as a known format has its own")
        if self.rate is not None and self.time_scale is not None:
            raise ValueError("give rate or time_scale, not both")
        if self.arrivals is not None and self.generate is not None:
            raise ValueError("a generator's spec says how requests arrive; leave arrivals out")
        if self.arrivals is not None and self.trace is not None and self.rate is None:
            raise ValueError("arrivals in place of a trace's own need a rate")
        if self.cv is not None and self.arrivals is None:
            raise ValueError("cv goes with arrivals: gamma or weibull")
        return self

    @property
    def seeded(self) -> bool:
        """Whether another seed gives another workload."""
        return self.trace is None or self.spread_ticks or self.arrivals is not None


class Config(BaseModel):
    """What `simkit run` and `simkit plan` take."""

    model_config = _STRICT

    deployment: Deployment
    workload: WorkloadSource
    profile: Path | None = Field(
        default=None, description="step times from `simkit calibrate`; default those that ship"
    )
    profile_any_device: bool = Field(default=False, description="use the profile though it is of another device")
    slo: dict[str, float] = Field(default_factory=dict, description="ttft_p99_s: 0.5 and the like")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _targets_are_known(self) -> Self:
        targets(self.slo)
        return self


ConfigKind = TypeVar("ConfigKind", bound=Config)


def read_config(path: Path | None, overrides: Sequence[tuple[str, object]]) -> Config:
    """The configuration of a file, if one is given, with `overrides` (dotted key, value) put over it.

    Raises InputError, naming the key and the nearest known one, for anything that is not understood.
    """
    return read_config_as(Config, path, overrides)


def read_config_as(kind: type[ConfigKind], path: Path | None, overrides: Sequence[tuple[str, object]]) -> ConfigKind:
    """`read_config` of a verb that has sections of its own."""
    tree: dict[str, object] = {} if path is None else read_mapping(path, CONFIGURATION)
    for key, value in overrides:
        _put(tree, key, value)
    place = str(path) if path is not None else "configuration"
    for part, flag in (("deployment", "--model and --device"), ("workload", "--trace, --preset or --generate")):
        if part not in tree:
            raise InputError(f"{place}: {part} is missing; give it in a file or by {flag}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise InputError(explain(error, place, kind)) from None


def _put(tree: dict[str, object], key: str, value: object) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            raise InputError(f"{parent}: a mapping is expected there; the file has {below!r}")
        tree = below
    tree[last] = value


def explain(error: ValidationError, place: str, kind: type[BaseModel] = Config) -> str:
    """The first problem of a configuration in one line; an unknown key is held to those known where it stands."""
    unknown = [found["loc"] for found in error.errors() if found["type"] == "extra_forbidden"]
    known = _keys_at(kind, [str(part) for part in unknown[0][:-1]]) if unknown else []
    return first_error(error, place, known)


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that the model at a path, through lists and models told apart by their kind, knows."""
    here = [model]
    for name in path:
        if name.isdigit():
            continue
        of_kind = [each for each in here if "kind" in each.model_fields and each.model_fields["kind"].default == name]
        field = here[0].model_fields.get(name)
        below = of_kind if len(here) > 1 else _models_in(field.annotation) if field is not None else []
        if not below:
            break
        here = below
    return list(here[0].model_fields)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    """The models that a type is, or is made of."""
    parts = get_args(annotation)
    if not parts and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in parts for model in _models_in(part)]


def resolve_replica(config: Config) -> ReplicaSpec:
    """The deployment worked out, with the step times of the profile, if one is given."""
    spec = resolve(config.deployment)
    return spec if config.profile is None else with_profile(spec, config.profile, config.profile_any_device)


def load_workload(source: WorkloadSource, seed: int) -> Workload:
    """The requests that a source describes."""
    times = None
    if source.trace is not None and source.arrivals is not None and source.rate is not None:
        times = arrival_spec(source.arrivals, source.rate, source.cv)
    if source.trace is not None:
        workload = read_workload(
            source.trace,
            source.format if source.columns is None else own_format(source.columns, source.time_unit),
            sort=source.sort,
            skip_bad_rows=source.skip_bad_rows,
            spread_ticks=source.spread_ticks,
            seed=seed,
            arrivals=times,
        )
        workload = without_lead_in(workload) if times is None else workload
        if workload.left_out:
            people.print(f"{source.trace}: {workload.left_out}", markup=False, style="yellow", soft_wrap=True)
    elif source.preset is not None:
        return _scaled(
            preset(
                source.preset,
                requests=source.requests,
                rate_per_s=source.rate,
                seed=seed,
                arrivals=source.arrivals,
                cv=source.cv,
            ),
            None,
            source.time_scale,
        )
    else:
        assert source.generate is not None, "the validator asked for one source"
        workload = generate(source.generate, seed)
    if source.requests is not None and source.requests < len(workload):
        workload = take(workload, source.requests)
    return _scaled(workload, source.rate if times is None else None, source.time_scale)


def _scaled(workload: Workload, rate: float | None, factor: float | None) -> Workload:
    if rate is not None:
        return rate_to(workload, rate)
    return workload if factor is None else time_scale(workload, factor)


def read_workload_source(tree: dict[str, object]) -> WorkloadSource:
    """A workload section by itself; raises InputError."""
    try:
        return WorkloadSource.model_validate(tree)
    except ValidationError as error:
        raise InputError(first_error(error, "workload", WorkloadSource.model_fields)) from None
