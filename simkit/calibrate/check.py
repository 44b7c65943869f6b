"""Does a stored profile still hold here: measure some of its points again and look at the ratios.

The drift is the median ratio of the time now to the time stored, with a bootstrap interval over points. A profile holds
if that interval stays within a limit, and no table by itself has moved far beyond it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.measure import measure
from simkit.calibrate.measure_device import open_device
from simkit.calibrate.measure_profile import timings_of
from simkit.calibrate.operator_profile import OperatorProfile
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.points import PlannedPoint, Point
from simkit.calibrate.timing import Timing
from simkit.errors import InputError

F64 = NDArray[np.float64]

POINTS = 50
LIMIT = 0.05  # drift that changes an answer less than the calibration's own error does
TABLE_LIMIT = 2.0  # times the limit: of a single table's median ratio
LEAST_OF_TABLE = 5  # points, for a table to be judged by itself
LEAST_POINTS = 6  # the fewest whose smallest and largest enclose a median 95 times in 100: 1 - 2 / 2^6 = 0.97
RESAMPLES = 2000
LEVEL = 0.95


class Moved(NamedTuple):
    """A point, then and now."""

    point: Point
    stored_ns: float
    now_ns: float
    noise: float  # (p90 - p10) / median now

    @property
    def ratio(self) -> float:
        """Now / then."""
        return self.now_ns / self.stored_ns


class TableDrift(NamedTuple):
    """The points of one table."""

    table: str
    points: int
    drift: float  # median ratio - 1
    low: float  # bootstrap interval of it
    high: float


class Drift(NamedTuple):
    """What a check found."""

    points: int
    drift: float
    low: float
    high: float
    limit: float
    holds: bool
    tables: tuple[TableDrift, ...]
    worst: tuple[Moved, ...]  # the points that moved most, worst first


def check_profile(
    stored: OperatorProfile, points: int, budget_s: float, limit: float = LIMIT, seed: int = 0, place: str = "profile"
) -> Drift:
    """Measure up to `points` of a profile's points again, on the device and with the settings that it was made with.

    Raises InputError for a profile that was not measured by this tool, a device that is not here, or a budget that is
    over before a point was measured.
    """
    header = stored.header
    timings = timings_of(stored.tables)
    if header.origin.kind != "measured" or not timings:
        raise InputError(
            f"{place}: was {header.origin.kind}, by {header.origin.name}; only what was measured is checked"
        )
    device = open_device(
        "cuda" if "cuda" in header.versions else "cpu",
        header.device,
        measured_dtype(stored),
        header.seen.multiprocessors or 1,
        header.kernels.footprint_bytes or 0,
        measured_heads(stored),
    )
    try:
        now = measure(device.bench, chosen_points(timings, points, seed), budget_s, seed=seed)
    finally:
        device.close()
    drift = drift_of(timings, now.timings, limit, seed)
    if drift is None:
        raise InputError(f"--budget {budget_s:g}s: no point was measured in it; allow more")
    return drift


def measured_dtype(profile: OperatorProfile) -> str:
    """Of its products, or of its KV cache where it has none."""
    for table, column in (("gemm", "dtype"), ("attention_decode", "kv_dtype"), ("attention_prefill", "kv_dtype")):
        if table in profile.tables:
            return str(profile.tables[table][column].iloc[0])
    return "bf16"


def measured_heads(profile: OperatorProfile) -> set[AttentionShape]:
    """The attention shapes of a profile."""
    columns = ["heads", "kv_heads", "head_dim", "window", "kv_dtype"]
    tables = [profile.tables[name] for name in ("attention_decode", "attention_prefill") if name in profile.tables]
    return {
        AttentionShape(int(heads), int(kv_heads), int(head_dim), int(window), str(kv_dtype))
        for frame in tables
        for heads, kv_heads, head_dim, window, kv_dtype in frame[columns].drop_duplicates().itertuples(index=False)
    }


def chosen_points(timings: Mapping[Point, Timing], most: int, seed: int) -> list[PlannedPoint]:
    """Up to `most` points, drawn evenly over the tables, long and short ones alike."""
    rng = np.random.default_rng(seed)
    by_table: dict[str, list[Point]] = {}
    for point in sorted(timings, key=lambda point: (point.table, point.sizes)):
        by_table.setdefault(point.table, []).append(point)
    drawn = {table: [points[i] for i in rng.permutation(len(points))] for table, points in by_table.items()}
    found: list[Point] = []
    while len(found) < most and any(drawn.values()):
        for points in drawn.values():
            if points and len(found) < most:
                found.append(points.pop())
    return [PlannedPoint(point, 0) for point in found]


def drift_of(
    stored: Mapping[Point, Timing], now: Mapping[Point, Timing], limit: float = LIMIT, seed: int = 0
) -> Drift | None:
    """What the points measured now say of those stored; None if they have no point in common."""
    moved = [
        Moved(point, stored[point].median_ns, timing.median_ns, timing.noise)
        for point, timing in now.items()
        if point in stored
    ]
    if not moved:
        return None
    rng = np.random.default_rng(seed)
    ratios = np.array([entry.ratio for entry in moved])
    drift, low, high = median_interval(ratios, rng)
    tables = []
    for table in sorted({entry.point.table for entry in moved}):
        own = np.array([entry.ratio for entry in moved if entry.point.table == table])
        tables.append(TableDrift(table, len(own), *(value - 1.0 for value in median_interval(own, rng))))
    gone = [t for t in tables if t.points >= LEAST_OF_TABLE and min(abs(t.low), abs(t.high)) > TABLE_LIMIT * limit]
    gone = [t for t in gone if t.low * t.high > 0]
    # the interval must lie within the limit, not merely touch it: what is not known to hold does not hold; and of a
    # point or two the bootstrap knows no more than these, so that its interval says nothing
    holds = len(moved) >= LEAST_POINTS and -limit <= low - 1.0 and high - 1.0 <= limit and not gone
    worst = sorted(moved, key=lambda entry: -abs(np.log(entry.ratio)))[:5]
    return Drift(len(moved), drift - 1.0, low - 1.0, high - 1.0, limit, holds, tuple(tables), tuple(worst))


def median_interval(values: F64, rng: np.random.Generator) -> tuple[float, float, float]:
    """The median of f64[n], n >= 1, and a percentile bootstrap interval of it at LEVEL (Efron 1979)."""
    drawn = np.median(rng.choice(values, (RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.median(values)), float(low), float(high)
