"""What the models of attention need to know of a device: its multiprocessors and its cache."""

from typing import NamedTuple

from simkit.calibrate.operator_profile import Header
from simkit.models.device import known_devices, load_device

MIB = 1 << 20


class Chip(NamedTuple):
    """One device; the defaults are an H100's, for where neither the profile nor a datasheet says."""

    multiprocessors: int = 132
    l2_bytes: float = 50.0 * MIB


def chip_of(header: Header) -> Chip:
    """The device as it was seen while it was measured, what was not seen from its datasheet."""
    chip = Chip()
    if header.device in known_devices():
        device = load_device(header.device)
        chip = Chip(device.multiprocessors.value, device.l2_mib.value * MIB)
    seen = header.seen.multiprocessors
    return chip if seen is None else chip._replace(multiprocessors=seen)
