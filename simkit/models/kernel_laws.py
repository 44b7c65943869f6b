"""How long kernels take on a device, as laws of few numbers distilled from public measurements.

A kernel of f FLOPs and m bytes takes `fixed + (t_compute^q + t_memory^q)^(1/q)`, with t_compute = f / (compute x peak)
and t_memory = m / (bandwidth x the device's): the roofline with a rounded corner, fitted per device and family of
operators. `laws/kernels.yaml` holds the numbers; `experiments/fidelity/distil_kernels.py` makes them from the tables
that ship with AIConfigurator (Apache-2.0), and prints how far the laws are from the tables.
"""

from functools import cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simkit.errors import InputError
from simkit.invalid import first_error
from simkit.models.device import Device, LinkKind
from simkit.models.operators import F64
from simkit.models.state_time import StatePrefillLaw
from simkit.yaml_file import read_mapping

KERNELS_FILE = Path(__file__).parent / "laws" / "kernels.yaml"

# between these and twice as many the tables jump from one line to another, on all devices with NVLink
LARGE_MESSAGE_BYTES = 2 << 20

Fraction = Field(gt=0.0, le=1.5)  # a hot cache can show more than the peak of memory


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KernelLaw(_Part):
    """The time of one kernel of a family."""

    compute: float = Fraction  # of the dense peak
    bandwidth: float = Fraction  # of the memory bandwidth
    fixed_us: float = Field(ge=0.0, le=1e3)
    corner: float = Field(default=8.0, ge=1.0, le=8.0)  # q
    extra_keys: float = Field(default=0.0, ge=0.0, le=1e5)  # prefill attention: as if each query saw so many more
    copies: float = Field(default=1.0, gt=0.0, le=1.5)  # MoE: of the bandwidth, where tokens are activated and summed
    error: float = Field(ge=0.0, le=10.0)  # median relative distance from the table

    def ns(self, compute_s: F64, memory_s: F64, launches: int) -> F64:
        """Time of `launches` kernels that take these seconds together at the device's peaks."""
        busy = np.power(
            np.power(compute_s / self.compute, self.corner) + np.power(memory_s / self.bandwidth, self.corner),
            1.0 / self.corner,
        )
        return np.where(busy > 0, launches * self.fixed_us * 1e3 + busy * 1e9, 0.0)


class AllReduceLaw(_Part):
    """`fixed + sent bytes / (efficiency x link)`, on so many GPUs of a node, inside a CUDA graph.

    Twice: for messages up to `LARGE_MESSAGE_BYTES`, which vLLM sums with a kernel of its own, and for larger ones,
    which it leaves to NCCL.
    """

    gpus: int = Field(ge=2, le=1024)
    fixed_us: float = Field(ge=0.0, le=1e4)
    efficiency: float = Fraction
    large_fixed_us: float = Field(ge=0.0, le=1e4)
    large_efficiency: float = Fraction
    error: float = Field(ge=0.0, le=10.0)

    def ns(self, sent_s: F64, message_bytes: F64, launches: int) -> F64:
        """Time of `launches` sums of `message_bytes` each whose bytes take `sent_s` together at the link's peak."""
        small = launches * self.fixed_us * 1e3 + sent_s / self.efficiency * 1e9
        time = np.where(message_bytes <= LARGE_MESSAGE_BYTES, small, self.nccl_ns(sent_s, launches))
        return np.where(sent_s > 0, time, 0.0)

    def nccl_ns(self, sent_s: F64, launches: int) -> F64:
        """The same by NCCL, whatever the size: vLLM's own kernel sums within one node only."""
        time = launches * self.large_fixed_us * 1e3 + sent_s / self.large_efficiency * 1e9
        return np.where(sent_s > 0, time, 0.0)


class DeviceLaws(_Part):
    """All families of one device."""

    source: str = Field(min_length=1)
    link: LinkKind  # that `all_reduce` was measured over
    gemm: KernelLaw
    gemm_8bit: KernelLaw
    grouped_gemm: KernelLaw  # a MoE layer: align, two products, activation, combine; `fixed_us` is for all of them
    grouped_gemm_8bit: KernelLaw
    grouped_gemm_4bit: KernelLaw  # weights of 4 bits, multiplied at 16, by the engine's choice of kernel for MXFP4
    grouped_gemm_marlin: KernelLaw  # the same by Marlin: integer weights, and MXFP4 where the server is told so
    attention_decode: KernelLaw
    attention_prefill: KernelLaw
    state_decode: KernelLaw  # of layers that keep a state: Gated DeltaNet
    state_prefill: StatePrefillLaw
    all_reduce: tuple[AllReduceLaw, ...] = Field(min_length=1)

    def all_reduce_on(self, gpus: int) -> AllReduceLaw:
        """The law for this many GPUs, or for the nearest number that was measured."""
        return min(self.all_reduce, key=lambda law: (abs(np.log2(law.gpus / gpus)), law.gpus))


class _File(_Part):
    devices: dict[str, DeviceLaws] = Field(min_length=1)
    stand_ins: dict[str, str]  # device without tables -> device of its kind whose fractions it is given


@cache
def _file() -> _File:
    try:
        return _File.model_validate(read_mapping(KERNELS_FILE))
    except ValidationError as error:
        raise InputError(first_error(error, str(KERNELS_FILE), _File.model_fields)) from error


def measured_devices() -> list[str]:
    """The devices that have tables of their own, sorted."""
    return sorted(_file().devices)


def laws_of(device: Device) -> tuple[DeviceLaws, str] | None:
    """A device's laws and the device they were measured on; None if there are none for its kind."""
    known = _file()
    name = device.name if device.name in known.devices else known.stand_ins.get(device.name)
    return None if name is None else (known.devices[name], name)
