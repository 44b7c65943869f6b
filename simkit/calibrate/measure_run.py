"""From a scope and a device to a profile on disk: plan, measure, keep what there is, take up again."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from simkit.calibrate.emitted_points import Step, held_out_points
from simkit.calibrate.measure import Measurement, Progress, measure
from simkit.calibrate.measure_device import MeasuredDevice
from simkit.calibrate.measure_profile import profile_of, timings_of
from simkit.calibrate.operator_profile import OperatorProfile, read_operator_profile, write_operator_profile
from simkit.calibrate.points import PlannedPoint, Point
from simkit.calibrate.points_plan import plan_points
from simkit.calibrate.points_scope import Scope
from simkit.calibrate.timing import Clock, Timing
from simkit.errors import InputError

HELD_OUT = {"gemm": 40, "attention_decode": 40, "attention_prefill": 30, "elementwise": 20}


class Outcome(NamedTuple):
    """What was measured and written."""

    measurement: Measurement
    profile: OperatorProfile


def plan_of(
    scope: Scope, steps: Sequence[Step], seed: int, host_copies: bool, held_out: dict[str, int] | None = None
) -> list[PlannedPoint]:
    """The grid of a scope and the points held out, drawn from replayed steps; the same arguments give the same plan."""
    grid = plan_points(scope, host_copies)
    drawn = held_out_points(
        scope, steps, {planned.point for planned in grid}, HELD_OUT if held_out is None else held_out, seed
    )
    return [*grid, *drawn]


def measured_profile(
    device: MeasuredDevice,
    plan: Sequence[PlannedPoint],
    budget_s: float,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    notes: Sequence[str] = (),
    clock: Clock = time.perf_counter,
    on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Measure a plan and write the profile to `out`, about every half minute and at the end.

    `resume` keeps the points that the profile in `out` has and measures the rest. Raises InputError where `out` holds
    something else, or a profile of another device or other kernels.
    """
    end_swap(out)
    earlier = earlier_timings(out, device, plan) if resume else {}
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: is not empty; name another directory, or --resume to go on with it")

    def keep(found: Measurement) -> OperatorProfile:
        profile = profile_of(
            found,
            plan,
            device=device.name,
            seen=device.seen(),
            versions=device.versions,
            kernels=device.kernels,
            notes=notes,
        )
        if found.timings:
            replace_profile(profile, out)
        return profile

    found = measure(
        device.bench,
        plan,
        budget_s,
        seed=seed,
        earlier=earlier,
        clock=clock,
        on_progress=on_progress,
        on_checkpoint=lambda so_far: void(keep(so_far)),
    )
    return Outcome(found, keep(found))


def earlier_timings(out: Path, device: MeasuredDevice, plan: Sequence[PlannedPoint]) -> dict[Point, Timing]:
    """What the profile in `out` has of a plan, each point for the same use; nothing where `out` is not there yet."""
    if not out.exists():
        return {}
    profile = read_operator_profile(out)
    for what, theirs, ours in (
        ("device", profile.header.device, device.name),
        ("kernels", profile.header.kernels, device.kernels),
        ("seen.name", profile.header.seen.name, device.seen().name),
    ):
        if theirs != ours:
            raise InputError(f"--resume: {out} has {what}={theirs!s}, here it is {ours!s}; measure to a new --out")
    found: dict[Point, Timing] = {}
    for use, held_out in (("fit", False), ("held_out", True)):
        wanted = {planned.point for planned in plan if planned.held_out == held_out}
        rows = timings_of({name: frame[frame["use"] == use] for name, frame in profile.tables.items()})
        found |= {point: timing for point, timing in rows.items() if point in wanted}
    return found


def replace_profile(profile: OperatorProfile, out: Path) -> None:
    """Write beside `out`, then swap, so that a crash leaves the old profile or the new one (`end_swap`)."""
    end_swap(out)
    new, old = _beside(out)
    for stale in (new, old):
        if stale.exists():
            shutil.rmtree(stale)
    write_operator_profile(profile, new)
    try:
        if out.exists():
            out.rename(old)
        new.rename(out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror or error}; name another directory") from None
    if old.exists():
        shutil.rmtree(old)


def end_swap(out: Path) -> None:
    """Where a swap was cut off between its two renames, do the second: the new profile is whole by then."""
    new, old = _beside(out)
    if old.exists() and new.exists() and not out.exists():
        new.rename(out)


def _beside(out: Path) -> tuple[Path, Path]:
    """Where the new profile is written, and where the old one is while they are swapped."""
    return out.with_name(out.name + ".new"), out.with_name(out.name + ".old")


def void(_: object) -> None:
    """Forget a result."""
