"""Collectives of one node: alpha + beta x bytes, piece by piece, for each kind and number of GPUs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.provenance import Tag, Times
from simkit.calibrate.size_line import SizeLine, size_line

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class CollectiveModel:
    """Times of messages, by (kind, gpus)."""

    lines: dict[tuple[str, int], SizeLine]

    def has(self, kind: str) -> bool:
        """Whether a kind was timed with any number of GPUs."""
        return any(known == kind for known, _ in self.lines)

    def ns(self, kind: str, message_bytes: F64, gpus: int) -> Times:
        """Times of messages of whole size `message_bytes` (f64[..]); KeyError for a kind that was not timed.

        With a number of GPUs that was not timed the nearest one's stand in, bytes scaled by what each GPU of a ring
        sends, (g - 1) / g (Patarasuk and Yuan, 2009): extrapolated.
        """
        if (kind, gpus) in self.lines:
            return self.lines[kind, gpus].at(message_bytes)
        known = [count for found, count in self.lines if found == kind]
        if not known:
            raise KeyError(kind)
        near = min(known, key=lambda count: abs(np.log2(count / gpus)))
        scale = ((gpus - 1) / gpus) / ((near - 1) / near)
        found = self.lines[kind, near].at(np.asarray(message_bytes, np.float64) * scale)
        return Times(found.ns, np.full_like(found.tag, Tag.EXTRAPOLATED))


def fit_collectives(frame: "pd.DataFrame") -> CollectiveModel:
    """The model of a profile's `collective` table; an engine's own kernel counts before NCCL's."""
    lines = {}
    for _, part in frame.groupby(["kind", "gpus"]):
        own = part[part["kernel"] != "NCCL"]
        rows = own if len(own) else part
        lines[str(part["kind"].iloc[0]), int(part["gpus"].iloc[0])] = size_line(
            rows["bytes"].to_numpy(np.float64), rows["median_ns"].to_numpy(np.float64)
        )
    return CollectiveModel(lines)
