"""Elementwise kernels and sampling: a line over the bytes moved, or the rows sampled, by name."""

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
class ElementwiseModel:
    """Times of one launch that reads and writes so many bytes, by the kernel's name."""

    lines: dict[str, SizeLine]
    all: SizeLine

    def ns(self, name: str, moved_bytes: F64) -> Times:
        """Times of launches that move `moved_bytes` (f64[..]); one not timed by name is any kernel: extrapolated."""
        if name in self.lines:
            return self.lines[name].at(moved_bytes)
        found = self.all.at(moved_bytes)
        return Times(found.ns, np.full_like(found.tag, Tag.EXTRAPOLATED))


@dataclass(frozen=True)
class SamplingModel:
    """Times of sampling rows of logits, by logits read; sampling is linear in the vocabulary."""

    line: SizeLine

    def ns(self, rows: F64, vocab: int) -> Times:
        """Times of `rows` (f64[..]) over a vocabulary."""
        return self.line.at(np.asarray(rows, np.float64) * vocab)


def fit_elementwise(frame: "pd.DataFrame") -> ElementwiseModel:
    """The model of a profile's `elementwise` table."""
    lines = {
        str(name): size_line(part["bytes"].to_numpy(np.float64), part["median_ns"].to_numpy(np.float64))
        for name, part in frame.groupby("name")
    }
    return ElementwiseModel(
        lines, size_line(frame["bytes"].to_numpy(np.float64), frame["median_ns"].to_numpy(np.float64))
    )


def fit_sampling(frame: "pd.DataFrame") -> SamplingModel:
    """The model of a profile's `sampling` table; of several ways to sample the one with the most rows counts."""
    way = frame["name"].value_counts().index[0]
    part = frame[frame["name"] == way]
    logits = (part["rows"] * part["vocab"]).to_numpy(np.float64)
    return SamplingModel(size_line(logits, part["median_ns"].to_numpy(np.float64)))
