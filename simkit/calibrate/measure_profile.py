"""A measurement as an operator profile, and back, so that it can be taken up again."""

from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from simkit import __version__
from simkit.calibrate.measure import Measurement
from simkit.calibrate.operator_profile import DeviceSeen, Header, KernelSource, OperatorProfile, Origin
from simkit.calibrate.points import PlannedPoint, Point, Size, has_kernel, point_columns
from simkit.calibrate.profile_tables import TIMING, absent
from simkit.calibrate.provenance import Tag
from simkit.calibrate.sentinel import summary
from simkit.calibrate.timing import Timing

if TYPE_CHECKING:
    import pandas as pd

TOOL = "simkit calibrate measure"
MOST_SKIPPED_NOTES = 5


def profile_of(
    measurement: Measurement,
    plan: Sequence[PlannedPoint],
    *,
    device: str,
    seen: DeviceSeen,
    versions: Mapping[str, str],
    kernels: KernelSource,
    notes: Sequence[str] = (),
) -> OperatorProfile:
    """The points measured, held-out ones marked, under a header that says what was seen and what is missing."""
    held_out = {planned.point for planned in plan if planned.held_out}
    header = Header(
        name=f"{device} {kernels.name}"[:300],
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        simkit_version=__version__,
        device=device,
        seen=seen,
        versions=dict(versions),
        kernels=kernels,
        origin=Origin(kind="measured", name=TOOL, version=__version__),
        notes=(*_notes(measurement), *notes),
    )
    return OperatorProfile(header, _tables(measurement.timings, held_out))


def _tables(timings: Mapping[Point, Timing], held_out: Set[Point]) -> "dict[str, pd.DataFrame]":
    """The rows of each table, in the order of their sizes: the same points give the same rows."""
    import pandas as pd

    rows: dict[str, list[tuple[object, ...]]] = {}
    for point, timing in sorted(timings.items(), key=lambda entry: (entry[0].table, entry[0].sizes)):
        kernel = (timing.kernel,) if has_kernel(point.table) else ()
        use = "held_out" if point in held_out else "fit"
        times = (timing.median_ns, timing.p10_ns, timing.p90_ns, timing.repeats, Tag.MEASURED.word, use)
        rows.setdefault(point.table, []).append((*point.sizes, *kernel, *times))
    return {
        table: pd.DataFrame(lines, columns=[*_names(table), *(column.name for column in TIMING)]).assign(
            **absent(table)
        )
        for table, lines in rows.items()
    }


def _names(table: str) -> list[str]:
    return [*point_columns(table), *(["kernel"] if has_kernel(table) else [])]


def timings_of(tables: "Mapping[str, pd.DataFrame]") -> dict[Point, Timing]:
    """The measured points of a profile's tables; rows that a tool filled in are left out."""
    found = {}
    for table, frame in tables.items():
        names = point_columns(table)
        measured = frame[(frame["known"] == Tag.MEASURED.word) & frame["p10_ns"].notna() & frame["p90_ns"].notna()]
        for row in measured.to_dict("records"):
            sizes: tuple[Size, ...] = tuple(row[name] for name in names)
            times = Timing(row["median_ns"], row["p10_ns"], row["p90_ns"], row["repeats"], str(row.get("kernel", "")))
            found[Point(table, sizes)] = times
    return found


def _notes(measurement: Measurement) -> list[str]:
    notes = [
        f"measured {len(measurement.timings):,} of {measurement.planned:,} planned points"
        f"{f', {measurement.kept:,} of them earlier and the others' if measurement.kept else ''} in "
        f"{measurement.spent_s:.0f} s, {measurement.visited_again:,} visits again"
    ]
    if measurement.interrupted:
        notes.append("partial: interrupted")
    elif not measurement.complete:
        notes.append("partial: the budget ended before all points were measured; coarse ones came first")
    if measurement.readings:
        steady = summary(measurement.readings)
        notes.append(
            f"sentinel: {steady.readings} readings, (p90 - p10) / median {steady.spread:.1%}, drift {steady.drift:+.1%}"
        )
    reasons = sorted(set(measurement.skipped.values()))[:MOST_SKIPPED_NOTES]
    if reasons:
        notes.append(f"{len(measurement.skipped)} points not measurable here: {'; '.join(reasons)}"[:300])
    return notes
