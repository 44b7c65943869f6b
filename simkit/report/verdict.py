"""The answer in words: what load, which side of the knee, targets met or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simkit.metrics.load import LoadPoint
from simkit.metrics.slo import ATTAINMENT, Promise, Target, promise, targets
from simkit.report.data import ReportData, at, number_at
from simkit.report.facts import JointCheck, joint_checks
from simkit.report.units import count, multiple, rate, seconds

Tone = Literal["good", "bad", "unsure"]


@dataclass(frozen=True)
class TargetCheck:
    """One target beside what was measured; `met` is None where nothing could be measured."""

    target: Target
    measured_s: float | None
    met: bool | None


@dataclass(frozen=True)
class Knee:
    """What the replays at other loads say, each None where no replay says it."""

    stable: LoadPoint | None  # the highest load under which every replay was stable
    saturated: LoadPoint | None  # the lowest load whose queue grew
    within_slo: LoadPoint | None  # the highest load up to which every replay met the targets


@dataclass(frozen=True)
class Verdict:
    """The first thing a reader sees."""

    tone: Tone
    headline: str
    sentences: tuple[str, ...]
    checks: tuple[TargetCheck, ...]
    joint: tuple[JointCheck, ...] = ()  # of what holds single requests to all limits at once


def verdict(data: ReportData) -> Verdict:
    """The run's verdict; missing parts of the summary make it unsure, never wrong."""
    checks = tuple(check_targets(data))
    joint = tuple(joint_checks(data.summary, promise(data.slo)))
    saturated = at(data.summary, "saturation", "saturated")
    tone, headline = _headline(data, checks, joint, saturated)
    sentences = [_load_sentence(data), _knee_sentence(data, saturated), _slo_sentence(data)]
    reason = at(data.summary, "saturation", "reason")
    if isinstance(reason, str) and reason:
        sentences.insert(1, f"Saturation check: {reason.rstrip('.')}.")
    return Verdict(tone, headline, tuple(s for s in sentences if s), checks, joint)


def check_targets(data: ReportData) -> list[TargetCheck]:
    """Each target against the summary's percentile; under a growing queue every target is missed."""
    saturated = at(data.summary, "saturation", "saturated") is True
    checks = []
    for target in targets(data.slo):
        measured = number_at(data.summary, "latency_s", target.metric, target.statistic)
        met = False if saturated else None if measured is None else measured <= target.limit_s
        checks.append(TargetCheck(target, measured, met))
    return checks


def find_knee(sweep: Sequence[LoadPoint], slo: Mapping[str, float]) -> Knee:
    """Where replays at rising load stop being stable, and stop meeting the targets."""
    points = sorted(sweep, key=lambda point: point.load)
    saturated = next((point for point in points if point.saturated), None)
    stable = [point for point in points if saturated is None or point.load < saturated.load]
    within = None
    promised = promise(slo)
    for point in stable if _checkable(points, promised) else []:
        if not _keeps(point, promised):
            break
        within = point
    return Knee(stable[-1] if stable else None, saturated, within)


def _checkable(points: Sequence[LoadPoint], promised: Promise) -> list[str]:
    """The names of what is promised that a point of the curve can tell; goodput, which rises with the load, is not."""
    if not points:
        return []
    names = [target.label for target in promised.targets if hasattr(points[0], target.key)]
    return [*names, ATTAINMENT] if promised.attainment is not None else names


def _keeps(point: LoadPoint, promised: Promise) -> bool:
    # NaN compares false: what is not known is not within its target
    told = [target for target in promised.targets if hasattr(point, target.key)]
    within = promised.attainment is None or point.goodput_fraction >= promised.attainment
    return within and all(getattr(point, target.key) <= target.limit_s for target in told)


def arrival_rate(data: ReportData) -> float | None:
    """Requests a second that the workload asked, None when it has fewer than two arrivals in time."""
    # the curve's own rate may be that of the first part of a long workload, which is all that it replays
    arrival_ns = data.result.requests.arrival_ns
    span_ns = int(arrival_ns.max() - arrival_ns.min()) if len(arrival_ns) else 0
    return (len(arrival_ns) - 1) / (span_ns / 1e9) if span_ns > 0 else None


def _headline(
    data: ReportData, checks: tuple[TargetCheck, ...], joint: tuple[JointCheck, ...], saturated: object
) -> tuple[Tone, str]:
    missed = [check.target.label for check in checks if check.met is False]
    missed += [check.label.lower() for check in joint if not check.met]
    count_of_all = len(checks) + len(joint)
    if not len(data.result.requests):
        return "unsure", "The workload held no requests."
    if saturated is True:
        ending = ", and no latency target can be met." if count_of_all else "."
        return "bad", f"Overloaded: the queue keeps growing at this load{ending}"
    if number_at(data.summary, "requests", "finished") == 0:
        return "bad", "No request finished."
    if saturated is not False:
        return "unsure", "It is not known whether this load is stable: the summary holds no saturation check."
    if missed:
        return "bad", f"Stable, but {len(missed)} of {_targets(count_of_all)} missed: {', '.join(missed)}."
    if any(check.met is None for check in checks):
        return "unsure", "Stable at this load, but not every target could be checked."
    if count_of_all:
        return "good", f"Stable at this load, and {'the target is' if count_of_all == 1 else 'all targets are'} met."
    return "unsure", "Stable at this load; no latency targets were given."


def _targets(number: int) -> str:
    return f"{number} target{'s' if number != 1 else ''}"


def _load_sentence(data: ReportData) -> str:
    requests = len(data.result.requests)
    asked = arrival_rate(data)
    pace = f", arriving at {rate(asked, 'req')} on average" if asked is not None else ""
    served = seconds(data.result.end_ns / 1e9)
    return f"Load: {count(requests)} request{'s' if requests != 1 else ''}{pace}; the last step ended after {served}."


def _knee_sentence(data: ReportData, saturated: object) -> str:
    if not data.sweep:
        return "No other loads were replayed, so how far the knee is away is not known."
    knee = find_knee(data.sweep, {})
    if saturated is True:
        if knee.stable is None:
            return "Past the knee: no load that was tried is stable."
        if knee.stable.load >= 1.0:
            return f"At the knee: this run's queue grows, yet a replay at {_place(knee.stable)} was stable."
        return f"Past the knee: the highest stable load tried is {_place(knee.stable)}."
    if knee.saturated is None or knee.stable is None:
        highest = max(data.sweep, key=lambda point: point.load)
        if knee.saturated is None:
            return f"Below the knee: stable at every load tried, up to {_place(highest)}."
        return f"The knee is below {_place(knee.saturated)}, the lowest load tried."
    if knee.saturated.load <= 1.0:
        return f"At the knee: replays at other loads are stable up to {_place(knee.stable)} only."
    return f"Below the knee: stable up to {_place(knee.stable)}, a growing queue from {_place(knee.saturated)}."


def _slo_sentence(data: ReportData) -> str:
    if not data.slo or not data.sweep:
        return ""
    checkable = _checkable(data.sweep, promise(data.slo))
    if not checkable:
        return ""
    within = find_knee(data.sweep, data.slo).within_slo
    names = " and ".join([", ".join(checkable[:-1]), checkable[-1]] if len(checkable) > 1 else checkable)
    if within is None:
        return f"No load that was tried meets {names}."
    return f"Highest load tried that meets {names}: {_place(within)}."


def _place(point: LoadPoint) -> str:
    return f"{multiple(point.load)} ({rate(point.rate_per_s, 'req')})"
