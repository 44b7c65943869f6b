"""Memory that timed operators on the CPU read: large, random and used in turn, so that data is as cold as in a step.

A decoder streams its weights once a step, so a layer's weights are in a cache only where all of the model fits. Timing
one operator again and again on the same weights would find them there. So it is given weights from different places of
one large block, one after the other, `footprint_bytes` in all before it comes back to the first.
"""

from collections.abc import Iterator
from itertools import cycle

import torch

RANDOM_ELEMENTS = 1 << 20  # drawn once and repeated: values do not change a CPU's times


class Arena:
    """One block of random values of a dtype that views are taken of; it grows when a larger view is asked for."""

    def __init__(self, footprint_bytes: int, dtype: torch.dtype) -> None:
        self.footprint_bytes = footprint_bytes
        self.dtype = dtype
        self._block = torch.empty(0, dtype=dtype)

    def views(self, *shape: int) -> Iterator[torch.Tensor]:
        """Tensors of a shape, from place after place, round and round."""
        elements = 1
        for size in shape:
            elements *= size
        self._grow(max(elements, self.footprint_bytes // self._block.element_size()))
        places = max(1, self._block.numel() // elements)
        return cycle([self._block[i * elements : (i + 1) * elements].view(shape) for i in range(places)])

    def one(self, *shape: int) -> torch.Tensor:
        """A tensor of a shape of its own, small values."""
        return torch.randn(shape, dtype=torch.float32).mul_(0.05).to(self.dtype)

    def _grow(self, elements: int) -> None:
        if elements > self._block.numel():
            self._block = torch.empty(elements, dtype=self.dtype)
            values = (torch.randn(RANDOM_ELEMENTS) * 0.05).to(self.dtype)
            for part in self._block.split(RANDOM_ELEMENTS):
                part.copy_(values[: len(part)])
