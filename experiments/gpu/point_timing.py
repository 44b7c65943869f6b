"""Timing points on the device: medians of samples, each point beside torch's ways, none failing the rest."""

import sys
from collections.abc import Callable

import torch
from kernel_calls import calls_of
from kernel_points import Point
from kernel_report import Result, Timing

from simkit.kernels.cold_timing import GraphTimer

SAMPLES = 11


def timing_of(samples_us: list[float]) -> Timing:
    """Median, 10th and 90th percentile by nearest rank."""
    ordered = sorted(samples_us)
    last = len(ordered) - 1
    return Timing(ordered[round(0.5 * last)], ordered[round(0.1 * last)], ordered[round(0.9 * last)])


def time_call(make: Callable[[], list[Callable[[], object]]]) -> Timing | str:
    """The time of a call of a rotation, or in a line why there is none."""
    try:
        timer = GraphTimer(make())
        return timing_of([timer.sample_us() for _ in range(SAMPLES)])
    except Exception as error:  # a backend that refuses, or memory: the other points are wanted all the same
        return told(error)
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def told(error: Exception) -> str:
    """What it says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def time_point(point: Point) -> Result:
    """Ours, and torch's ways."""
    try:
        calls = calls_of(point)
    except Exception as error:  # memory, for instance
        return Result(point, None, {}, told(error))
    ours = time_call(calls.ours)
    torch_ways = {name: time_call(make) for name, make in calls.torch.items()}
    failed = ours if isinstance(ours, str) else ""
    return Result(point, None if isinstance(ours, str) else ours, torch_ways, failed)


def time_points(
    points: tuple[Point, ...],
    end_s: float,
    clock: Callable[[], float],
    on_point: Callable[[list[Result], list[str]], object] | None = None,
) -> tuple[list[Result], list[str]]:
    """Results, and the labels of those there was no time for; `on_point` is given both as they are by then."""
    results: list[Result] = []
    for number, point in enumerate(points):
        left_out = [late.label for late in points[number:]]
        if clock() > end_s:
            return results, left_out
        results.append(time_point(point))
        say(f"{point.label}: {results[-1].ours or results[-1].failed}")
        if on_point is not None:
            on_point(results, left_out[1:])
    return results, []


def say(line: str) -> None:
    """Progress, on stderr at once."""
    print(line, file=sys.stderr, flush=True)
