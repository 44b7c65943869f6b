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
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    finally:
        torch.cuda.empty_cache()


def time_point(point: Point) -> Result:
    """Ours, and torch's ways."""
    calls = calls_of(point)
    ours = time_call(calls.ours)
    torch_ways = {name: time_call(make) for name, make in calls.torch.items()}
    failed = ours if isinstance(ours, str) else ""
    return Result(point, None if isinstance(ours, str) else ours, torch_ways, failed)


def time_points(points: tuple[Point, ...], end_s: float, clock: Callable[[], float]) -> tuple[list[Result], list[str]]:
    """Results, and the labels of those there was no time for."""
    results: list[Result] = []
    for number, point in enumerate(points):
        if clock() > end_s:
            return results, [late.label for late in points[number:]]
        results.append(time_point(point))
        say(f"{point.label}: {results[-1].ours or results[-1].failed}")
    return results, []


def say(line: str) -> None:
    """Progress, on stderr at once."""
    print(line, file=sys.stderr, flush=True)
