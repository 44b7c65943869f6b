"""The first line of a simkit trace: what the requests below it are and where they came from."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simkit.errors import InputError
from simkit.invalid import first_error

SCHEMA = "simkit.trace/1"

PROVENANCE = ("source_repo", "source_commit", "license", "tokenizer", "sha256_source")
"""Header fields that are carried along as text."""


class TraceHeader(BaseModel):
    """The header object, field by field as docs/workload.md describes it."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)

    version: Literal["simkit.trace/1"] = Field(default="simkit.trace/1", alias="schema")
    name: str = ""
    source: str = ""
    source_repo: str | None = None
    source_commit: str | None = None
    license: str | None = None
    tokenizer: str | None = None
    sha256_source: str | None = None
    time_origin: Literal["relative"] = "relative"
    tick_us: int = Field(default=1, ge=1, le=86_400_000_000, strict=True)
    block_tokens: int | None = Field(default=None, ge=1, le=1 << 20, strict=True)
    hash_scope: Literal["global", "session"] | None = None
    partial_block: Literal["ceil", "floor"] = "floor"
    truncated: bool = False
    transform: tuple[str, ...] = ()
    dropped_rows: dict[str, int] = Field(default_factory=dict)

    def provenance(self) -> dict[str, str]:
        """The fields that only tell where the trace came from, those that are set."""
        found = {name: getattr(self, name) for name in PROVENANCE}
        known = {name: value for name, value in found.items() if value is not None}
        return known | ({"truncated": "true"} if self.truncated else {})


def header_of(found: dict[str, object], place: str) -> TraceHeader:
    """The header that an object is; raises InputError at `place`."""
    if found.get("schema") != SCHEMA:
        raise InputError(f"{place}: schema={found.get('schema')!r}: is not a version known here; known: {SCHEMA}")
    try:
        return TraceHeader.model_validate(found)
    except ValidationError as error:
        known = ["schema", *(name for name in TraceHeader.model_fields if name != "version")]
        raise InputError(first_error(error, place, known)) from None
