"""Random matrices to test with."""

from collections.abc import Sequence

import torch


def normal(shape: Sequence[int], dtype: torch.dtype, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Normal values of standard deviation `scale`, the same for a seed whatever the dtype."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
