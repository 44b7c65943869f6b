"""Workloads drawn from distributions: a spec and a seed give the same requests everywhere."""

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simkit.errors import InputError
from simkit.invalid import first_error
from simkit.workloads.arrivals import ARRIVALS, MAX_REQUESTS, ArrivalSpec, arrivals_until_us, arrivals_us
from simkit.workloads.lengths import LENGTHS, LengthSpec, drawn, uniform_pairs
from simkit.workloads.prefix_reuse import PREFIXES, PrefixSpec
from simkit.workloads.readers import read_workload
from simkit.workloads.streams import streams
from simkit.workloads.workload import I32, Workload
from simkit.yaml_file import read_yaml

MAX_SPEC_BYTES = 16 << 20


class Independent(BaseModel):
    """Prompt and answer lengths each from its own distribution, with a rank correlation (Spearman) between them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["independent"] = "independent"
    input: LengthSpec
    output: LengthSpec
    rank_correlation: float = Field(default=0.0, ge=-1, le=1)

    def pairs(self, first: np.random.Generator, second: np.random.Generator, n: int) -> tuple[I32, I32]:
        """[n] prompt and answer lengths."""
        u, v = uniform_pairs(first, second, n, self.rank_correlation)
        return drawn(self.input, u), drawn(self.output, v)


class FromTrace(BaseModel):
    """Prompt and answer lengths together from rows of a trace, drawn with replacement."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["trace"] = "trace"
    path: Path
    format: str | None = None

    def pairs(self, first: np.random.Generator, second: np.random.Generator, n: int) -> tuple[I32, I32]:
        """[n] prompt and answer lengths."""
        trace = read_workload(self.path, self.format, sort=True, lengths_only=True)
        row = first.integers(0, len(trace), n)
        return trace.prompt_tokens[row], trace.output_tokens[row]


Lengths = Annotated[Independent | FromTrace, Field(discriminator="kind")]


class GeneratorSpec(BaseModel):
    """What to draw: how many requests, when they arrive, how long they are and what they share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "generated"
    requests: int | None = Field(default=None, ge=1, le=MAX_REQUESTS)
    duration_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    arrivals: ArrivalSpec
    lengths: Lengths
    prefix: PrefixSpec | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.requests is None) == (self.duration_s is None):
            raise ValueError("give exactly one of requests and duration_s")
        return self


SPEC_KEYS = {
    key
    for model in (GeneratorSpec, Independent, FromTrace, *ARRIVALS.values(), *LENGTHS.values(), *PREFIXES.values())
    for key in model.model_fields
}
"""Every key that a spec may have somewhere."""


def generate(spec: GeneratorSpec, seed: int = 0) -> Workload:
    """The workload of a spec; equal specs and seeds give equal workloads.

    Each purpose has its own random stream, so that changing the lengths leaves the arrivals as they were.
    """
    when, prompt_stream, output_stream, sharing = streams(seed, 4)
    if spec.requests is not None:
        arrival_us = arrivals_us(spec.arrivals, when, spec.requests)
    else:
        assert spec.duration_s is not None, "the validator asked for one of them"
        arrival_us = arrivals_until_us(spec.arrivals, when, spec.duration_s)
    if len(arrival_us) == 0:
        raise InputError(f"{spec.name}: no request arrives within {spec.duration_s:g} s; raise duration_s or the rate")
    prompt, output = spec.lengths.pairs(prompt_stream, output_stream, len(arrival_us))
    prefixes = None
    if spec.prefix is not None:
        prompt, prefixes = spec.prefix.apply(prompt, sharing)
    return Workload(
        name=spec.name,
        arrival_us=arrival_us,
        prompt_tokens=prompt,
        output_tokens=output,
        prefixes=prefixes,
        source=f"generator {spec.name}, seed {seed}",
    )


def load_spec(path: Path | str) -> GeneratorSpec:
    """The spec that a YAML file holds; a trace it names by a relative path is looked for beside it."""
    path = Path(path)
    found = read_yaml(path, "a generator's spec is expected", MAX_SPEC_BYTES)
    try:
        spec = GeneratorSpec.model_validate(found)
    except ValidationError as error:
        raise InputError(first_error(error, str(path), SPEC_KEYS)) from None
    if isinstance(spec.lengths, FromTrace):
        beside = spec.lengths.model_copy(update={"path": path.parent / spec.lengths.path})
        return spec.model_copy(update={"lengths": beside})
    return spec
