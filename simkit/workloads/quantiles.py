"""Distributions given by a table of quantiles: what a preset keeps of a trace."""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

F64 = NDArray[np.float64]

LEVELS: tuple[float, ...] = (
    *(0.0, 0.001, 0.002, 0.005),
    *(round(0.01 * i, 2) for i in range(1, 100)),
    *(0.995, 0.998, 0.999, 1.0),
)
"""The shares of rows at which presets state a quantile: every percent, and finer in both tails."""


GAP_LEVELS: tuple[float, ...] = tuple(
    sorted(
        {*LEVELS, *(round(0.98 + 0.001 * i, 3) for i in range(20)), *(round(0.999 + 0.0001 * i, 4) for i in range(10))}
    )
)
"""Levels for gaps between arrivals: a few minutes of silence hold much of a bursty hour, so the upper tail is finer."""


class QuantileTable(BaseModel):
    """The values below which each share of the rows lies; between two levels the value goes linearly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: tuple[float, ...] = Field(default=LEVELS, min_length=2)  # shares, from 0 to 1
    values: tuple[float, ...] = Field(min_length=2)  # one a level, not decreasing

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if len(self.levels) != len(self.values):
            raise ValueError(f"has {len(self.values)} values for {len(self.levels)} levels; give one a level")
        if self.levels[0] != 0 or self.levels[-1] != 1 or not (np.diff(self.levels) > 0).all():
            raise ValueError("levels do not rise from 0 to 1")
        if not (np.isfinite(self.values).all() and self.values[0] >= 0 and (np.diff(self.values) >= 0).all()):
            raise ValueError("values are not finite, not negative and rising")
        return self

    def at(self, share: F64) -> F64:
        """The quantiles of so many shares, 0 <= share <= 1."""
        return np.interp(share, self.levels, self.values)

    def mean(self) -> float:
        """The mean of the distribution that the table describes: the area under its quantiles."""
        values, levels = np.array(self.values), np.array(self.levels)
        return float(((values[1:] + values[:-1]) / 2 * np.diff(levels)).sum())


def quantile_table(values: NDArray[np.integer] | F64, levels: tuple[float, ...] = LEVELS) -> QuantileTable:
    """The table of observed values: at each level the smallest value that so large a share does not exceed."""
    found = np.quantile(values, levels, method="inverted_cdf")
    return QuantileTable(levels=levels, values=tuple(float(v) for v in found))
