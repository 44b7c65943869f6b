"""Times of kernels on a CUDA device as they are inside a step: replayed in a CUDA graph, on data that is cold.

A hot loop over one tensor finds it in the L2 cache and beats the memory's bandwidth; a launch from Python costs more
than a small kernel. So the same kernel is captured many times in one graph, each time on the next of several data sets
that together are larger than `COLD_CACHES` times the L2 cache, and the graph is replayed between two events:

    rotation = [lambda w=w: linear(x, w) for w in weights]       # as many as `sets_for` says
    timer = GraphTimer(rotation)
    samples_us = [timer.sample_us() for _ in range(10)]          # of one call, each over at least `LEAST_SAMPLE_MS`

The gap between two kernels of a graph is part of the time, as it is in a step. For whoever times kernels here: the
calibration (simkit/calibrate/cuda_bench.py) and the kernels' own benchmark share this file.
"""

from collections.abc import Callable, Sequence

import torch

COLD_CACHES = 4  # L2 caches that a rotation goes through before it comes back
LEAST_SAMPLE_MS = 2.0  # the events' grain is 0.5 us, a graph's launch about 10 us: under 1 % of it
MOST_NODES = 128  # calls in one graph: capturing costs 20 to 50 us of Python each
WARM_UPS = 3

Call = Callable[[], object]


def sets_for(set_bytes: int, device: torch.device, most: int = 64) -> int:
    """Data sets of `set_bytes` to rotate over, so that none is in the L2 cache when its turn comes again."""
    cache_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
    return max(1, min(most, -(-COLD_CACHES * cache_bytes // max(1, set_bytes))))


class GraphTimer:
    """Calls captured in a CUDA graph, in turn, and timed by its replays."""

    def __init__(self, rotation: Sequence[Call], least_ms: float = LEAST_SAMPLE_MS) -> None:
        """Run each call (which compiles it), capture them, and choose how often a sample replays the graph.

        Args:
            rotation: the same work on different data; called in turn.
            least_ms: of a sample.

        Raises:
            RuntimeError: from torch, where a call fails or cannot be captured: it synchronises, or allocates on the
                host.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                for call in rotation:
                    call()
            one_ms = self._events(lambda: [call() for call in rotation]) / len(rotation)
        torch.cuda.current_stream().wait_stream(stream)
        # whole rounds of the rotation, as many calls as fill a sample or MOST_NODES
        wanted = min(MOST_NODES, max(1.0, least_ms / max(one_ms, 1e-4)))
        rounds = max(1, round(wanted / len(rotation)))
        self.calls = rounds * len(rotation)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for i in range(self.calls):
                rotation[i % len(rotation)]()
        self._graph.replay()
        self._replays = 1
        self._replays = max(1, round(least_ms / max(self._events(self._run), 1e-4)))

    def sample_us(self) -> float:
        """Microseconds of one call, over one sample."""
        return self._events(self._run) * 1e3 / (self.calls * self._replays)

    def _run(self) -> None:
        for _ in range(self._replays):
            self._graph.replay()

    @staticmethod
    def _events(work: Callable[[], object]) -> float:
        """Milliseconds that the device takes for `work`."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))
