"""A profile: the measured step times of one deployment as one JSON file, schema `simkit.profile/1`, safe to read."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simkit.bounded_file import read_bounded
from simkit.calibrate.front_end import FrontEnd
from simkit.calibrate.held_out import HeldOutError
from simkit.calibrate.step_model import WholeStep
from simkit.errors import InputError, suggestion
from simkit.invalid import first_error

SCHEMA: Literal["simkit.profile/1"] = "simkit.profile/1"
LARGEST_PROFILE_BYTES = 1 << 20

Text = Annotated[str, Field(max_length=300)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Size = Annotated[int, Field(ge=1, le=1 << 31)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Source(_Part):
    """A log that the profile was fitted on."""

    file: Text  # its name, without folders
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the file as it lies on disk")
    steps: Count
    requests: Count


class EngineSizes(_Part):
    """The sizes the measured engine ran with, in its own names; null where the log does not say."""

    block_size: Size | None = None
    num_gpu_blocks: Size | None = None
    max_num_batched_tokens: Size | None = None
    max_num_seqs: Size | None = None


class Seen(_Part):
    """The largest values among the steps fitted on; a step beyond is extrapolated."""

    tokens: Size
    requests: Size
    context_tokens: Size  # of one request, the step's own tokens included
    pairs: float = Field(ge=0.0, le=1e18, allow_inf_nan=False)


class Profile(_Part):
    """What was measured, on what, what was fitted to it, and how wrong that is."""

    schema_: Literal["simkit.profile/1"] = Field(default=SCHEMA, alias="schema")
    created: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    simkit_version: Text
    device: Text
    engine: Text
    versions: dict[Text, Text] = Field(default_factory=dict, max_length=50)
    model: dict[Text, str | int | float | bool | None] = Field(default_factory=dict, max_length=200)
    engine_sizes: EngineSizes
    sources: tuple[Source, ...] = Field(min_length=1, max_length=1000)
    seen: Seen
    step: WholeStep  # adds up to the time that was spent
    typical_step: WholeStep | None = None  # of the median step; None in profiles written before it was fitted
    front_end: FrontEnd | None = None
    held_out: tuple[HeldOutError, ...] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _can_serve(self) -> "Profile":
        if self.step.step_s + self.step.token_s + self.step.request_s + self.step.pair_s == 0.0:
            raise ValueError("step: all coefficients are 0, so a step would take no time; fit it again")
        return self

    @property
    def provenance(self) -> str:
        """The label of numbers that come from it."""
        return f"calibrated on {self.device}, {self.engine}, {self.created}"

    def extrapolated(self, max_num_batched_tokens: int, max_num_seqs: int, max_model_len: int) -> tuple[str, ...]:
        """What a deployment of these limits may ask that was never measured, a sentence each."""
        asked = (
            ("tokens", max_num_batched_tokens, self.seen.tokens),
            ("requests", max_num_seqs, self.seen.requests),
            ("tokens of context", max_model_len, self.seen.context_tokens),
        )
        return tuple(
            f"steps of more than {seen:,} {what} are extrapolated (the limit is {limit:,})"
            for what, limit, seen in asked
            if limit > seen
        )


def profile_text(profile: Profile) -> str:
    """The profile as it is written: JSON of two-space indent, keys in the schema's order, a newline at the end."""
    return json.dumps(profile.model_dump(mode="json", by_alias=True), indent=2, allow_nan=False) + "\n"


def profile_hash(profile: Profile) -> str:
    """The sha256 of `profile_text`, for results to say which profile they rest on."""
    return hashlib.sha256(profile_text(profile).encode()).hexdigest()


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile to a file; InputError where that cannot be done."""
    try:
        path.write_text(profile_text(profile), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}; name another file") from None


def read_profile(path: Path) -> Profile:
    """The profile a file holds.

    Raises:
        InputError: naming the file and field, for a file that cannot be read, is over 1 MiB, is of another schema, or
            has a value that is missing, unknown or out of range.
    """
    raw = read_bounded(path, LARGEST_PROFILE_BYTES, "name a profile's JSON file")
    named = re.search(rb'"schema"\s*:\s*"([^"]{0,100})"', raw)
    schema = named[1].decode(errors="replace") if named else None
    if schema is not None and schema != SCHEMA:
        raise InputError(f"{path}: schema={schema!r}: is not known; {suggestion(schema, [SCHEMA])}")
    try:
        profile = Profile.model_validate_json(raw)
    except ValidationError as error:
        raise InputError(first_error(error, str(path), _names(Profile))) from None
    if schema is None:
        raise InputError(f"{path}: schema: is missing; a profile says {SCHEMA!r}")
    return profile


def _names(model: type[BaseModel]) -> set[str]:
    """All keys that a profile can have, at any depth."""
    parts: tuple[type[BaseModel], ...] = (model, Source, EngineSizes, Seen, WholeStep, FrontEnd, HeldOutError)
    return {field.alias or name for part in parts for name, field in part.model_fields.items()}
