"""Timing points on the device: medians of samples, each point beside torch's ways, none failing the rest."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import torch
from device_lost import leave_if_lost
from kernel_calls import calls_of
from kernel_points import Point
from kernel_report import Result, Timing
from stages import Found, Row, Stages

from simkit.kernels.cold_timing import GraphTimer

SAMPLES = 11
WAY_S = 100.0  # of one way at most: FlexAttention compiles for half a minute
OURS = "ours"


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
        with suppress(RuntimeError):  # a device that is lost: see `time_points`
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def told(error: Exception) -> str:
    """What it says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def time_ways(point: Point) -> Iterator[Row]:
    """Ours, and torch's ways: each with its three figures, or with the reason why there are none."""
    try:
        calls = calls_of(point)
    except Exception as error:  # memory, for instance
        yield [OURS, told(error)]
        return
    for way, make in ((OURS, calls.ours), *calls.torch.items()):
        timing = time_call(make)
        yield [way, timing] if isinstance(timing, str) else [way, *timing]


def result_of(point: Point, found: Found) -> Result:
    """A point as it was timed; the way that was cut short has the reason."""
    ways = {str(row[0]): str(row[1]) if len(row) == 2 else Timing(*row[1:]) for row in found.rows}
    if found.cut:
        ways[next((way for way in (OURS, *point.against) if way not in ways), "another way")] = found.cut
    ours = ways.pop(OURS)
    return Result(point, None, ways, ours) if isinstance(ours, str) else Result(point, ours, ways)


def time_points(
    points: tuple[Point, ...],
    end_s: float,
    clock: Callable[[], float],
    on_point: Callable[[list[Result], list[str]], object] | None = None,
    stages: Stages | None = None,
) -> tuple[list[Result], list[str]]:
    """Results, and the labels of those there was no time for; `on_point` is given both as they are by then.

    Each way may take WAY_S where `stages` are watched.
    """
    stages = stages or Stages()
    results: list[Result] = []
    for number, point in enumerate(points):
        left_out = [late.label for late in points[number:]]
        name = f"point {number + 1}: {point.label}"
        if clock() > end_s and stages.known(name) is None:
            return results, left_out
        results.append(result_of(point, stages.run(name, WAY_S, partial(time_ways, point))))
        say(f"{point.label}: {results[-1].ours or results[-1].failed}")
        if on_point is not None:
            on_point(results, left_out[1:])
        leave_if_lost()
    return results, []


def say(line: str) -> None:
    """Progress, on stderr at once."""
    print(line, file=sys.stderr, flush=True)
