"""Bundled workloads: the statistics of published traces, from which requests are drawn. No trace is bundled."""

from dataclasses import replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

import yaml
from pydantic import BaseModel, ConfigDict, Field

from simkit.errors import InputError, suggestion
from simkit.workloads.arrivals import WITH_CV, ArrivalSpec, arrival_spec
from simkit.workloads.generate import GeneratorSpec, Independent, generate
from simkit.workloads.lengths import QuantileLength
from simkit.workloads.prefix_reuse import PrefixSpec
from simkit.workloads.quantiles import QuantileTable
from simkit.workloads.workload import Workload

DEFAULT_REQUESTS = 10_000


class PresetArrivals(BaseModel):
    """How a trace's requests arrived."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str  # a name in `ARRIVALS`
    rate_per_s: float = Field(gt=0)
    gap_cv: float = Field(ge=0)  # of the trace (Mooncake: after its ticks were spread)
    gap_s: QuantileTable | None = None  # for kind "quantiles"


class Preset(BaseModel):
    """One file of facts/: written by experiments/presets/make_presets.py."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    what: str
    source: str
    licence: str
    tokenizer: str
    requests: int  # in the trace that the statistics are of
    arrivals: PresetArrivals | None = None  # None: the source has no arrival times
    input_tokens: QuantileTable
    output_tokens: QuantileTable
    rank_correlation: float = Field(ge=-1, le=1)
    prefix: PrefixSpec | None = None


def known_presets() -> tuple[str, ...]:
    """The names of the bundled presets, sorted."""
    return tuple(sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml")))


def _folder() -> Traversable:
    return resources.files("simkit") / "workloads" / "facts"


@cache
def load_preset(name: str) -> Preset:
    """The statistics of a bundled preset; raises InputError for a name that is not known."""
    if name not in known_presets():
        raise InputError(f"preset {name!r} is not known; {suggestion(name, known_presets())}")
    return Preset.model_validate(yaml.safe_load((_folder() / f"{name}.yaml").read_bytes()))


def preset(
    name: str,
    *,
    requests: int | None = None,
    rate_per_s: float | None = None,
    duration_s: float | None = None,
    seed: int = 0,
    arrivals: str | None = None,
    cv: float | None = None,
) -> Workload:
    """A workload drawn from a bundled preset.

    `requests` or `duration_s` say how much (10,000 requests where neither does), `rate_per_s` the mean rate (the
    trace's where it has one), `arrivals` a kind of process in place of the preset's own ("poisson" where it has none),
    `cv` its coefficient of variation. Raises InputError for an unknown name and for choices that contradict.
    """
    found = load_preset(name)
    if requests is not None and duration_s is not None:
        raise InputError("give requests or duration_s, not both")
    if requests is None and duration_s is None:
        requests = DEFAULT_REQUESTS
    if (requests is not None and requests < 1) or (duration_s is not None and not duration_s > 0):
        raise InputError(f"requests={requests}, duration_s={duration_s}: a number above 0 is wanted")
    spec = GeneratorSpec(
        name=name,
        requests=requests,
        duration_s=duration_s,
        arrivals=preset_arrivals(found, rate_per_s, arrivals, cv),
        lengths=_lengths(found),
        prefix=found.prefix,
    )
    about = {"license": found.licence, "tokenizer": found.tokenizer}
    return replace(generate(spec, seed), source=f"preset {name}, seed {seed}", provenance=about)


def preset_arrivals(found: Preset, rate_per_s: float | None, kind: str | None, cv: float | None) -> ArrivalSpec:
    """The arrival process of a preset, with what the caller wants otherwise; raises InputError."""
    own = found.arrivals
    rate = rate_per_s if rate_per_s is not None else own.rate_per_s if own else None
    if rate is None:
        raise InputError(f"preset {found.name!r} has no arrival times of its own; give a rate, for instance --rate 1")
    kind = kind or (own.kind if own else "poisson")
    gaps = own.gap_s if own else None
    if kind == "quantiles" and gaps is None:
        raise InputError(f"preset {found.name!r} has no table of gaps; choose --arrivals poisson or gamma")
    if cv is None and own is not None and kind in WITH_CV:
        cv = own.gap_cv
    return arrival_spec(kind, rate, cv, gaps)


def _lengths(found: Preset) -> Independent:
    return Independent(
        input=QuantileLength(levels=found.input_tokens.levels, values=found.input_tokens.values),
        output=QuantileLength(levels=found.output_tokens.levels, values=found.output_tokens.values),
        rank_correlation=found.rank_correlation,
    )
