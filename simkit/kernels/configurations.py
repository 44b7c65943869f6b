"""How each kernel is compiled for each architecture: a committed table that a tuning script may rewrite.

An entry of `configurations.json` says: for this kernel, on devices of this compute capability, where all of `where`
holds, compile with these constants, warps and stages. A number in `where` is an upper bound, inclusive; a text must be
equal. The first entry that fits is taken, so narrow entries stand before wide ones. `basis` says how it was chosen:
`compiled` (spills nothing and fits) or `timed`, with device and date.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

TABLE = Path(__file__).with_name("configurations.json")
INTERPRETED_ARCHITECTURE = 90  # whose constants a CPU tensor, in Triton's interpreter, is given
NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
}  # Triton's names of the dtypes


class Configuration(NamedTuple):
    """An entry of the table."""

    kernel: str
    architecture: int  # compute capability, major * 10 + minor
    where: Mapping[str, int | str]
    constants: Mapping[str, int]
    num_warps: int
    num_stages: int
    basis: str


def read(path: Path = TABLE) -> tuple[Configuration, ...]:
    """The entries of a table, in its order."""
    return tuple(Configuration(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))


def write(entries: Iterable[Configuration], path: Path = TABLE) -> None:
    """Write a table, an entry a line, which `read` gives back."""
    lines = ",\n".join(json.dumps(entry._asdict()) for entry in entries)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def fits(entry: Configuration, where: Mapping[str, int | str]) -> bool:
    """Whether an entry answers for a launch of these properties, which must name all that the entry asks for."""
    return all(_within(where[name], bound) for name, bound in entry.where.items())


def _within(value: int | str, bound: int | str) -> bool:
    return value <= bound if isinstance(value, int) and isinstance(bound, int) else value == bound


def choose(
    entries: Sequence[Configuration], kernel: str, architecture: int, where: Mapping[str, int | str]
) -> Configuration:
    """The first entry that fits, of the newest architecture known that is not newer than the device's.

    Raises:
        ValueError: no entry fits; names the kernel and what was asked for.
    """
    known = sorted({entry.architecture for entry in entries if entry.kernel == kernel}, reverse=True)
    for candidate in [a for a in known if a <= architecture] + [a for a in reversed(known) if a > architecture]:
        for entry in entries:
            if entry.kernel == kernel and entry.architecture == candidate and fits(entry, where):
                return entry
    asked = ", ".join(f"{name} {value}" for name, value in where.items())
    raise ValueError(f"{kernel}: no configuration for {asked}; add one to {TABLE.name}")


_IN_USE: ContextVar[tuple[Configuration, ...] | None] = ContextVar("table in use", default=None)


@contextmanager
def using(entries: Sequence[Configuration]) -> Iterator[None]:
    """Launch from these entries instead of the committed ones, within a `with`: for tuning."""
    before = _IN_USE.set(tuple(entries))
    try:
        yield
    finally:
        _IN_USE.reset(before)


def configuration(kernel: str, device: torch.device, **where: int | str) -> Configuration:
    """What the committed table says for a launch on this device, or the one that is in use."""
    table = _IN_USE.get()
    if table is not None:
        return choose(table, kernel, architecture_of(device), where)
    return _configuration(kernel, architecture_of(device), tuple(where.items()))


def architecture_of(device: torch.device) -> int:
    """Compute capability of the device, such as 90; on the CPU the interpreter is given Hopper's constants."""
    if device.type != "cuda":
        return INTERPRETED_ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(device)
    return int(10 * major + minor)


@cache
def _configuration(kernel: str, architecture: int, where: tuple[tuple[str, int | str], ...]) -> Configuration:
    return choose(_committed(), kernel, architecture, dict(where))


@cache
def _committed() -> tuple[Configuration, ...]:
    return read()
