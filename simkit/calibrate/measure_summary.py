"""How much of each table was measured, and how noisy its repeats were: the floor of any held-out error."""

from typing import NamedTuple

import numpy as np

from simkit.calibrate.operator_profile import OperatorProfile


class TableSummary(NamedTuple):
    """One table; noise is (p90 - p10) / median of a point's repeats."""

    table: str
    points: int
    held_out: int
    noise_p50: float  # over points
    noise_p90: float


def table_summaries(profile: OperatorProfile) -> list[TableSummary]:
    """Every table of a measured profile, by name."""
    found = []
    for name, frame in sorted(profile.tables.items()):
        noise = ((frame["p90_ns"] - frame["p10_ns"]) / frame["median_ns"]).to_numpy(np.float64)
        middle, high = np.nanquantile(noise, [0.5, 0.9])
        held_out = int((frame["use"] == "held_out").sum())
        found.append(TableSummary(name, len(frame), held_out, float(middle), float(high)))
    return found
