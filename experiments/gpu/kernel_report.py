"""The results of `kernels.py` as JSON and Markdown: values in, text out."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kernel_points import Point, work


class Timing(NamedTuple):
    """Samples of one call, in microseconds."""

    median_us: float
    p10_us: float
    p90_us: float


class Result(NamedTuple):
    """A point as it was timed."""

    point: Point
    ours: Timing | None
    torch: Mapping[str, Timing | str]  # a way of torch's: its time, or why there is none
    failed: str = ""


class Check(NamedTuple):
    """A kernel against its float64 reference."""

    kernel: str
    label: str
    error: float
    accepted: float
    failed: str = ""

    @property
    def passed(self) -> bool:
        """Within what is accepted; NaN is not."""
        return not self.failed and self.error <= self.accepted


class Ceilings(NamedTuple):
    """What the machine reaches, by its best of several ways."""

    read_bytes_per_s: float
    copy_bytes_per_s: float  # read and written
    gemm_operations_per_s: float  # bf16
    ways: Mapping[str, float]  # each way's rate

    def rate(self, name: str) -> float:
        """Of `read`, `copy` or `gemm`, a second."""
        rates = {"read": self.read_bytes_per_s, "copy": self.copy_bytes_per_s, "gemm": self.gemm_operations_per_s}
        return rates[name]


def fraction(point: Point, timing: Timing, ceilings: Ceilings) -> float:
    """The share of its ceiling that a point reached."""
    amount = work(point).operations if point.ceiling == "gemm" else work(point).moved_bytes
    return amount / (timing.median_us * 1e-6) / ceilings.rate(point.ceiling)


def best_of_torch(result: Result) -> tuple[str, Timing] | None:
    """Torch's fastest way to do the same, if any ran."""
    ran = [(name, timing) for name, timing in result.torch.items() if isinstance(timing, Timing)]
    return min(ran, key=lambda pair: pair[1].median_us) if ran else None


def verdict(result: Result, ceilings: Ceilings) -> str:
    """Whether the point's aims are met, in words; empty where it has none."""
    point = result.point
    if result.ours is None:
        return "failed"
    words = []
    if point.aim is not None:
        reached = fraction(point, result.ours, ceilings)
        words.append("unknown" if math.isnan(reached) else "met" if reached >= point.aim else "MISSED")
        if point.stretch is not None and reached >= point.stretch:
            words[-1] = "met, stretch too"
    best = best_of_torch(result)
    if point.most_of_torch is not None and best is not None:
        ratio = result.ours.median_us / best[1].median_us
        words.append(f"torch {'met' if ratio <= point.most_of_torch else 'MISSED'}")
    return ", ".join(words)


def as_json(
    machine: Mapping[str, object],
    ceilings: Ceilings,
    checks: Sequence[Check],
    results: Sequence[Result],
    left_out: Sequence[str],
) -> dict[str, object]:
    """Everything, with what was derived from it."""
    return {
        "format": "simkit.kernels/1",
        "machine": dict(machine),
        "ceilings": {name: finite(value) for name, value in ceilings._asdict().items()},
        "checks": [_check_row(check) for check in checks],
        "points": [_row(result, ceilings) for result in results],
        "left_out": list(left_out),
    }


def finite(value: object) -> object:
    """None for a number that is none, for which JSON has no word."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_row(check: Check) -> dict[str, object]:
    return check._asdict() | {"error": finite(check.error), "passed": check.passed}


def _row(result: Result, ceilings: Ceilings) -> dict[str, object]:
    point, ours = result.point, result.ours
    torch = {name: way._asdict() if isinstance(way, Timing) else way for name, way in result.torch.items()}
    return {
        "kernel": point.kernel,
        "sizes": dict(point.sizes),
        "ceiling": point.ceiling,
        **work(point)._asdict(),
        "ours": ours._asdict() if ours else None,
        "fraction": finite(fraction(point, ours, ceilings)) if ours else None,
        "aim": point.aim,
        "stretch": point.stretch,
        "torch": torch,
        "most_of_torch": point.most_of_torch,
        "verdict": verdict(result, ceilings),
        "failed": result.failed,
    }


def as_markdown(
    machine: Mapping[str, object],
    ceilings: Ceilings,
    checks: Sequence[Check],
    results: Sequence[Result],
    left_out: Sequence[str],
) -> str:
    """The report to read and to commit."""
    failed = [check for check in checks if not check.passed]
    lines = ["# Kernels on this machine", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += [
        f"- ceilings: read {ceilings.read_bytes_per_s / 1e12:.2f} TB/s, "
        f"copy {ceilings.copy_bytes_per_s / 1e12:.2f} TB/s, "
        f"bf16 GEMM {ceilings.gemm_operations_per_s / 1e12:.0f} TFLOP/s",
        f"- checks: {len(checks) - len(failed)} passed, {len(failed)} failed",
        "",
        "| point | us (p10 to p90) | of ceiling | aim | torch's best | ours / torch | verdict |",
        "|---|---|---|---|---|---|---|",
        *[_line(result, ceilings) for result in results],
        "",
        "| check | error | accepted | |",
        "|---|---|---|---|",
    ]
    for check in checks:
        word = "passed" if check.passed else f"FAILED {check.failed}".strip()
        lines.append(f"| {check.kernel} {check.label} | {check.error:.1e} | {check.accepted:.1e} | {word} |")
    if left_out:
        lines += ["", "Left out, for the time was over: " + "; ".join(left_out)]
    return "\n".join(lines) + "\n"


def _line(result: Result, ceilings: Ceilings) -> str:
    point, ours = result.point, result.ours
    if ours is None:
        return f"| {point.label} | failed: {result.failed} | | | | | failed |"
    best = best_of_torch(result)
    aim = "" if point.aim is None else f"{point.aim:.0%}" + ("" if point.stretch is None else f" ({point.stretch:.0%})")
    theirs, ratio = "", ""
    if best is not None:
        theirs, ratio = f"{best[0]} {best[1].median_us:.1f} us", f"{ours.median_us / best[1].median_us:.2f}"
    elif result.torch:
        theirs = "none ran"
    cells = (
        point.label,
        f"{ours.median_us:.1f} ({ours.p10_us:.1f} to {ours.p90_us:.1f})",
        f"{fraction(point, ours, ceilings):.0%} of {point.ceiling}",
        aim,
        theirs,
        ratio,
        verdict(result, ceilings),
    )
    return "| " + " | ".join(cells) + " |"
