"""CPU time that goes with a CUDA device: launching kernels, replaying a graph, preparing a step's inputs."""

import time
from collections.abc import Callable

import torch

from simkit.calibrate.measure import UnmeasurableError
from simkit.calibrate.points import Point
from simkit.calibrate.timing import Repeat
from simkit.kernels.step_batch import Share, step_batch

LAUNCHES = 200  # in one repeat; fewer than what fills the driver's queue
GRAPH_NODES = 300  # kernels of a graph, about those of 30 layers
PAGE_TOKENS = 16
CONTEXT_TOKENS = 1024  # of each request, in a step to prepare


class HostTimer:
    """A CPU-side action; the device is idle before each repeat."""

    def __init__(self, point: Point, device: torch.device) -> None:
        part = point.text("part")
        if part not in _PARTS:
            raise UnmeasurableError(f"host {part} is not timed here")
        self.kernel = ""
        self._action, self._count = _PARTS[part](point, device)
        for _ in range(2):
            self._action()

    def repeat(self) -> Repeat:
        """Wall time of one action, ns."""
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        self._action()
        ns = time.perf_counter_ns() - start
        torch.cuda.synchronize()
        return Repeat(max(1, ns) / self._count)


def _launch(point: Point, device: torch.device) -> tuple[Callable[[], object], int]:
    x = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            x.add_(1.0)

    return launches, LAUNCHES


def _graph_launch(point: Point, device: torch.device) -> tuple[Callable[[], object], int]:
    x = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_NODES):
            x.add_(1.0)
    return graph.replay, 1


def _prepare(point: Point, device: torch.device) -> tuple[Callable[[], object], int]:
    """A step's inputs made in Python and sent to the device, by `kernels/step_batch.py`."""
    requests, tokens = point.count("requests"), point.count("tokens")
    each = [tokens // requests + (i < tokens % requests) for i in range(requests)]
    shares = []
    first = 1
    for new in each:
        pages = range(first, first - (-(CONTEXT_TOKENS + new) // PAGE_TOKENS))
        first = pages.stop
        shares.append(Share(range(new), CONTEXT_TOKENS, pages, True))
    return lambda: step_batch(shares, PAGE_TOKENS, device), 1


_PARTS: dict[str, Callable[[Point, torch.device], tuple[Callable[[], object], int]]] = {
    "launch": _launch,
    "graph_launch": _graph_launch,
    "prepare": _prepare,
}
