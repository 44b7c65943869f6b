"""Links by class: what a transfer between GPUs, to the host, between nodes or to a store can use, and where from."""

from typing import Literal, NamedTuple

import simpy
from pydantic import BaseModel, ConfigDict, Field

from simkit.cluster.link import Link
from simkit.errors import InputError, suggestion


class LinkClass(NamedTuple):
    """One direction, 1e9 bytes/s, as the standard or datasheet says; `latency_us` is the order of a small transfer."""

    gb_per_s: float
    latency_us: float
    source: str


_SMALL = "latency: assumed order of magnitude"
LINK_CLASSES = {
    "nvlink3": LinkClass(300, 5, f"NVIDIA A100 datasheet (2021), 600 GB/s both directions; {_SMALL}"),
    "nvlink4": LinkClass(450, 5, f"NVIDIA H100 datasheet (2023), 900 GB/s both directions; {_SMALL}"),
    "nvlink5": LinkClass(900, 5, f"NVIDIA HGX B200 datasheet (2024), 1.8 TB/s both directions; {_SMALL}"),
    "pcie4": LinkClass(31.5, 10, f"PCI-SIG: 16 GT/s x 16 lanes x 128/130 / 8; {_SMALL}"),
    "pcie5": LinkClass(63, 10, f"PCI-SIG: 32 GT/s x 16 lanes x 128/130 / 8; {_SMALL}"),
    "infiniband-hdr": LinkClass(25, 5, f"InfiniBand Trade Association: HDR 4x, 200 Gb/s; {_SMALL}"),
    "infiniband-ndr": LinkClass(50, 5, f"InfiniBand Trade Association: NDR 4x, 400 Gb/s; {_SMALL}"),
    "infiniband-xdr": LinkClass(100, 5, f"InfiniBand Trade Association: XDR 4x, 800 Gb/s; {_SMALL}"),
    "ethernet-10g": LinkClass(1.25, 50, f"IEEE 802.3ae, 10 Gb/s; {_SMALL}, TCP"),
    "ethernet-25g": LinkClass(3.125, 50, f"IEEE 802.3by, 25 Gb/s; {_SMALL}, TCP"),
    "ethernet-100g": LinkClass(12.5, 20, f"IEEE 802.3ba, 100 Gb/s; {_SMALL}, RoCE"),
    "ethernet-400g": LinkClass(50, 20, f"IEEE 802.3bs, 400 Gb/s; {_SMALL}, RoCE"),
    "nvme4": LinkClass(7, 100, f"sequential read of PCIe 4.0 x4 drives, of 7.9 GB/s by PCI-SIG; {_SMALL}"),
}
ACHIEVED = 0.85  # of the line rate; assumed: 0.8 to 0.95 is usual for large transfers over all of these


class LinkSpec(BaseModel):
    """A link by its class, by its figures, or by a class with some of its figures replaced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str | None = Field(default=None, description="a class of link, as infiniband-ndr")
    gb_per_s: float | None = Field(default=None, gt=0, le=1e6, description="one direction, 1e9 bytes/s")
    latency_us: float | None = Field(default=None, ge=0, le=1e9)
    achieved: float = Field(default=ACHIEVED, gt=0, le=1, description="share of gb_per_s that transfers reach")
    links: int = Field(default=1, ge=1, le=1024, description="in parallel, as one NIC a GPU; used together")

    def bytes_per_s(self) -> float:
        """What a transfer by itself gets. InputError for an unknown class or none at all."""
        return (
            (self.gb_per_s if self.gb_per_s is not None else self._class().gb_per_s) * 1e9 * self.achieved * self.links
        )

    def latency_ns(self) -> int:
        """Added to each transfer."""
        if self.latency_us is not None:
            return round(self.latency_us * 1e3)
        return round(self._class().latency_us * 1e3) if self.kind is not None else 0

    def _class(self) -> LinkClass:
        if self.kind is None:
            raise InputError("link: has neither kind nor gb_per_s; give one of them, for instance kind: infiniband-ndr")
        if self.kind not in LINK_CLASSES:
            raise InputError(f"link.kind={self.kind!r} is not known; {suggestion(self.kind, LINK_CLASSES)}")
        return LINK_CLASSES[self.kind]


SharedBy = Literal["sender", "receiver", "all"]
"""Which transfers meet on one link: those of one replica that sends, of one that receives, or all between two pools."""


class Wires:
    """The links between a pool that sends and one that receives."""

    def __init__(self, clock: simpy.Environment, spec: LinkSpec, shared_by: SharedBy) -> None:
        """InputError for a link that is not known."""
        self._clock = clock
        self._bytes_per_s, self._latency_ns = spec.bytes_per_s(), spec.latency_ns()
        self._shared_by = shared_by
        self._links: dict[int, Link] = {}

    def between(self, sender: int, receiver: int) -> Link:
        """The link on which a transfer between two replicas, given by number, is."""
        number = {"sender": sender, "receiver": receiver, "all": 0}[self._shared_by]
        if number not in self._links:
            self._links[number] = Link(self._clock, self._bytes_per_s, self._latency_ns)
        return self._links[number]

    @property
    def bytes(self) -> int:
        """Moved or being moved, over all."""
        return sum(link.bytes for link in self._links.values())

    @property
    def count(self) -> int:
        """Links that were used."""
        return len(self._links)

    @property
    def busy_ns(self) -> int:
        """Time in which something was on them, added up."""
        return sum(link.busy_ns for link in self._links.values())
