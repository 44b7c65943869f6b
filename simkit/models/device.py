"""A GPU as the figures its datasheet and driver give, each with its source.

The bundled devices are in `facts/devices.yaml`; a user's own device is a YAML file of the same form holding one.
"""

import re
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simkit.errors import InputError, suggestion
from simkit.invalid import first_error
from simkit.models.catalog import DEVICES_FILE
from simkit.models.precision import Precision
from simkit.yaml_file import read_mapping

LinkKind = Literal["nvlink", "pcie", "infinity-fabric"]

MAKERS = ("nvidia", "amd", "geforce", "instinct")  # words that drivers put before a device's own name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Whole(_Strict):
    """A counted figure and where it was read."""

    value: int = Field(gt=0, le=10**15)
    source: str = Field(min_length=1)


class Figure(_Strict):
    """A measured or published figure and where it was read."""

    value: float = Field(gt=0, le=1e18)
    source: str = Field(min_length=1)


class Throughput(_Strict):
    """Dense (never sparse) peak, in TFLOP/s or TOP/s, of the matrix units by input precision, fp32 accumulation."""

    bf16: float = Field(gt=0, le=1e9)
    fp8: float | None = Field(default=None, gt=0, le=1e9)
    int8: float | None = Field(default=None, gt=0, le=1e9)
    fp4: float | None = Field(default=None, gt=0, le=1e9)
    source: str = Field(min_length=1)


class Link(_Strict):
    """How GPUs of one node reach each other."""

    kind: LinkKind
    gb_per_s: float = Field(gt=0, le=1e6)  # one direction, all of a GPU's lanes together, 1e9 bytes/s
    source: str = Field(min_length=1)


class Device(_Strict):
    """One accelerator. Memory is what the CUDA or HIP runtime reports as total, which is less than the box says."""

    name: str = Field(min_length=1)
    aliases: tuple[str, ...] = ()
    memory_gib: Figure
    bandwidth_gb_per_s: Figure  # 1e9 bytes/s
    tflops: Throughput
    multiprocessors: Whole
    compute_capability: Figure | None = None  # NVIDIA's: decides which attention kernels an engine takes
    l2_mib: Figure
    power_w: Figure
    link: Link
    usd_per_hour: Figure  # a typical on-demand rate: an assumption to replace by one's own
    prefill_attention_fraction: Figure | None = None  # of the bf16 peak that long prefill attention reaches, 0 to 1

    @property
    def memory_bytes(self) -> int:
        """Total memory in bytes as the runtime reports it."""
        return int(self.memory_gib.value * 2**30)

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Peak memory bandwidth."""
        return self.bandwidth_gb_per_s.value * 1e9

    @property
    def link_bytes_per_s(self) -> float:
        """Peak bandwidth to the other GPUs of the node, one direction."""
        return self.link.gb_per_s * 1e9

    def flops_per_s(self, weights: Precision) -> float:
        """Dense peak of a GEMM whose weights are stored in `weights`.

        int4 and mxfp4 weights are multiplied at 16 bits (Marlin and Triton kernels of vLLM); fp8, int8 and nvfp4 use
        the device's own units, or 16 bits where it has none (weight-only fallback, vLLM "Supported Hardware").
        """
        peaks = {"fp8": self.tflops.fp8, "int8": self.tflops.int8, "nvfp4": self.tflops.fp4}
        return (peaks.get(weights) or self.tflops.bf16) * 1e12


def _device(name: str, place: str, content: object) -> Device:
    if not isinstance(content, dict):
        raise InputError(f"{place}: device {name!r} is a {type(content).__name__}; a mapping of figures is expected")
    try:
        return Device.model_validate({**content, "name": name})
    except ValidationError as error:
        message = first_error(error, f"{place}: device {name!r}", Device.model_fields)
        raise InputError(
            f"{message} (a figure is {{value: 864, source: datasheet}}; docs/plan.md has an example)"
        ) from error


@cache
def _devices() -> dict[str, Device]:
    return {name: _device(name, DEVICES_FILE.name, content) for name, content in read_mapping(DEVICES_FILE).items()}


@cache
def _names() -> dict[str, str]:
    return {_spelt(alias): device.name for device in _devices().values() for alias in (*device.aliases, device.name)}


def _spelt(name: str) -> str:
    """A name as the catalogue spells it: drivers say `NVIDIA H100 80GB HBM3`, tables `h100_sxm`."""
    words = re.split(r"[\s_-]+", name.strip().lower())
    while len(words) > 1 and words[0] in MAKERS:
        words = words[1:]
    return "-".join(words)


def known_devices() -> list[str]:
    """The names of all bundled devices, sorted."""
    return sorted(_devices())


def load_device(name_or_path: str) -> Device:
    """A bundled device by name or alias as people and drivers spell it, or the one device of a YAML file by path.

    Raises:
        InputError: the name is unknown, or the file does not hold one device of the form of `facts/devices.yaml`.
    """
    short = _names().get(_spelt(name_or_path))
    if short is not None:
        return _devices()[short]
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() not in (".yaml", ".yml") and not path.is_file():
        raise InputError(
            f"device {name_or_path!r} is not known; {suggestion(_spelt(name_or_path), _names())} "
            "(or give the path of a YAML file with its figures)"
        )
    content = read_mapping(path)
    if len(content) != 1:
        raise InputError(f"{path}: holds {len(content)} devices; one is expected, as 'my-gpu: {{memory_gib: ..}}'")
    name, figures = next(iter(content.items()))
    return _device(name, str(path), figures)
