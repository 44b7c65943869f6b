"""An operator profile, format `simkit.profile/2`: a directory with `profile.json` and one CSV a table.

`profile.json` says what was measured, on what, when and by what code, and lists each table's file with its rows and
sha256. The tables and their columns are in `profile_tables.py`. A table's file may be gzip'd (`.csv.gz`). Reading one
from a stranger is safe: sizes are bounded, every value is checked, nothing is evaluated.

    profile = read_operator_profile(Path("h200"))
    profile.header.device            # "h200"
    profile.tables["gemm"]           # a data frame, columns as in profile_tables.TABLES plus the timing columns
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from simkit.bounded_file import read_bounded
from simkit.calibrate.profile_csv import table_bytes, table_frame
from simkit.calibrate.profile_tables import MOST_ROWS, TABLES
from simkit.errors import InputError, suggestion
from simkit.invalid import first_error

if TYPE_CHECKING:
    import pandas as pd

FORMAT: Literal["simkit.profile/2"] = "simkit.profile/2"
HEADER_FILE = "profile.json"
LARGEST_HEADER_BYTES = 1 << 20
LARGEST_TABLE_BYTES = 128 << 20

Text = Annotated[str, Field(max_length=300)]
Positive = Annotated[float, Field(gt=0.0, le=1e18, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DeviceSeen(_Part):
    """The device as its driver reported it while it was measured; null where a source does not say."""

    name: Text
    multiprocessors: int | None = Field(default=None, ge=1, le=1 << 20)
    memory_bytes: int | None = Field(default=None, ge=1, le=1 << 50)
    driver: Text | None = None
    clock_mhz: Positive | None = None  # median while measuring
    memory_clock_mhz: Positive | None = None
    power_w: Positive | None = None  # median while measuring
    power_limit_w: Positive | None = None
    temperature_c: Positive | None = None
    throttled: Text | None = None  # reasons the driver gave, empty if none


class KernelSource(_Part):
    """The code that was timed: a hash over the files of our own kernels, or the name of somebody else's."""

    name: Text
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    # memory that a timed kernel went through before it met the same data again; null where a source does not say
    footprint_bytes: int | None = Field(default=None, ge=0, le=1 << 50)


class Origin(_Part):
    """Who measured it."""

    kind: Literal["measured", "imported"]
    name: Text = Field(description="simkit calibrate measure, or the source imported")
    version: Text = ""
    licence: Text = ""
    files: tuple[Text, ...] = Field(default=(), max_length=1000)


class TableFile(_Part):
    """One table's file, beside the header."""

    file: str = Field(pattern=r"^[a-z0-9_]{1,60}\.csv(\.gz)?$")
    rows: int = Field(ge=1, le=MOST_ROWS)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the file as it lies on disk")


class Header(_Part):
    """What was measured, on what, when and by what code."""

    format: Literal["simkit.profile/2"] = FORMAT
    name: Text
    created: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="when it was measured, or imported")
    simkit_version: Text
    device: Text = Field(description="a name of `simkit devices`, or of a device file of one's own")
    seen: DeviceSeen
    engine: Text = Field(default="", description="the engine whose kernels were timed, vllm 0.24.0; empty if none")
    versions: dict[Text, Text] = Field(default_factory=dict, max_length=50)
    kernels: KernelSource
    origin: Origin
    notes: tuple[Text, ...] = Field(default=(), max_length=50)
    tables: dict[Text, TableFile] = Field(default_factory=dict, max_length=len(TABLES))

    @field_validator("tables")
    @classmethod
    def _known(cls, given: dict[str, TableFile]) -> dict[str, TableFile]:
        for name in given:
            if name not in TABLES:
                raise ValueError(f"table {name!r} is not known; {suggestion(name, TABLES)}")
        return given


@dataclass(frozen=True)
class OperatorProfile:
    """A header and its tables, by name; a table that was not measured is absent."""

    header: Header
    tables: "dict[str, pd.DataFrame]"

    @property
    def provenance(self) -> str:
        """The label of numbers that come from it."""
        verb = "measured" if self.header.origin.kind == "measured" else "imported"
        return f"operators {verb}: {self.header.name}, {self.header.created}"


def write_operator_profile(profile: OperatorProfile, folder: Path, compress: bool = False) -> Header:
    """Write a profile into a directory, made if absent; returns the header with the tables' rows and hashes filled in.

    The header is written last, so an interrupted write leaves no profile that reads. The same profile gives the same
    bytes. Raises InputError if the directory holds other files or cannot be written, or a value does not pass.
    """
    _check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = _write_tables(profile.tables, folder, compress)
        header = profile.header.model_copy(update={"tables": files})
        (folder / HEADER_FILE).write_text(header_text(header), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}; name another directory") from None
    return header


def _write_tables(tables: "dict[str, pd.DataFrame]", folder: Path, compress: bool) -> dict[str, TableFile]:
    files: dict[str, TableFile] = {}
    for name, frame in tables.items():
        if len(frame) == 0:
            continue
        raw = table_bytes(name, frame, compress)
        file = f"{name}.csv.gz" if compress else f"{name}.csv"
        (folder / file).write_bytes(raw)
        files[name] = TableFile(file=file, rows=len(frame), sha256=hashlib.sha256(raw).hexdigest())
    return files


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; a profile is a directory, name another")
    if not folder.is_dir():
        return
    ours = {HEADER_FILE, *(f"{name}.csv" for name in TABLES), *(f"{name}.csv.gz" for name in TABLES)}
    for path in folder.iterdir():
        if path.name not in ours:
            raise InputError(f"{folder}: holds {path.name!r}, which is no part of a profile; name an empty directory")
    for path in folder.iterdir():
        path.unlink()


def header_text(header: Header) -> str:
    """The header as it is written: JSON of two-space indent, a newline at the end."""
    return json.dumps(header.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"


def operator_profile_hash(header: Header) -> str:
    """The sha256 of `header_text`; it covers the tables through their hashes."""
    return hashlib.sha256(header_text(header).encode()).hexdigest()


def profile_folder(path: Path) -> Path | None:
    """The directory of an operator profile that a path means, itself or its header's; None if it means none."""
    if path.is_dir():
        return path
    if path.name != HEADER_FILE or not path.is_file():
        return None
    raw = read_bounded(path, LARGEST_HEADER_BYTES, "name a profile")
    return path.parent if FORMAT.encode() in raw else None


def read_header(folder: Path) -> Header:
    """The header of a profile's directory.

    Raises:
        InputError: naming the file and field, if it cannot be read, is of another format, or a value is out of range.
    """
    path = folder / HEADER_FILE
    raw = read_bounded(path, LARGEST_HEADER_BYTES, "a profile is a directory that holds this file")
    named = re.search(rb'"format"\s*:\s*"([^"]{0,100})"', raw)
    found = named[1].decode(errors="replace") if named else None
    if found is not None and found != FORMAT:
        raise InputError(f"{path}: format={found!r}: is not known; {suggestion(found, [FORMAT])}")
    try:
        header = Header.model_validate_json(raw)
    except ValidationError as error:
        parts = (Header, DeviceSeen, KernelSource, Origin, TableFile)
        raise InputError(first_error(error, str(path), {key for part in parts for key in part.model_fields})) from None
    if found is None:
        raise InputError(f"{path}: format: is missing; a profile says {FORMAT!r}")
    return header


def read_operator_profile(folder: Path) -> OperatorProfile:
    """The profile a directory holds.

    Raises:
        InputError: naming file, row and column, for a file that cannot be read or is too large, was changed since the
            header was written, or holds a value that does not pass.
    """
    header = read_header(folder)
    return OperatorProfile(header, _read_tables(header.tables, folder))


def _read_tables(files: dict[str, TableFile], folder: Path) -> "dict[str, pd.DataFrame]":
    tables = {}
    for name, entry in files.items():
        path = folder / entry.file
        raw = read_bounded(path, LARGEST_TABLE_BYTES, "copy the whole directory")
        if hashlib.sha256(raw).hexdigest() != entry.sha256:
            raise InputError(f"{path}: is not the file that {HEADER_FILE} lists (sha256 differs); copy it again")
        tables[name] = table_frame(name, raw, path)
        if len(tables[name]) != entry.rows:
            raise InputError(f"{path}: holds {len(tables[name])} rows, {HEADER_FILE} says {entry.rows}; copy it again")
    return tables
