"""Where a predicted time comes from, and times that carry it."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I8 = NDArray[np.int8]


class Tag(IntEnum):
    """How well a time is known, best first."""

    MEASURED = 0  # this size was timed
    INTERPOLATED = 1  # between sizes that were timed
    EXTRAPOLATED = 2  # beyond all sizes that were timed, or another operator's measurements carried over
    ASSUMED = 3  # nothing was timed: datasheet figures and constants

    @property
    def word(self) -> str:
        """As files and people spell it."""
        return self.name.lower()


TAGS = tuple(tag.word for tag in Tag)


class Times(NamedTuple):
    """Durations and how each is known; both arrays have the shape of the sizes asked for."""

    ns: F64
    tag: I8  # values of Tag

    def times(self, factor: float) -> "Times":
        """The same, `factor` times as long."""
        return Times(self.ns * factor, self.tag)


def tagged(ns: F64, tag: Tag) -> Times:
    """Durations that are all known equally well."""
    return Times(np.asarray(ns, np.float64), np.full(np.shape(ns), int(tag), np.int8))


class Shares(NamedTuple):
    """A sum of durations and how much of it stands under each tag."""

    ns: F64  # [...]
    by_tag: F64  # [len(Tag), ...]; sums to `ns` over the first axis


def summed(parts: Sequence[Times], shape: tuple[int, ...]) -> Shares:
    """The sum of parts that run one after the other; each part is broadcast to `shape`."""
    by_tag = np.zeros((len(Tag), *shape))
    for part in parts:
        for tag in Tag:
            by_tag[tag] += np.where(part.tag == tag, part.ns, 0.0)
    return Shares(by_tag.sum(axis=0), by_tag)
