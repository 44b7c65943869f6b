"""The step sizes vLLM captures CUDA graphs for: a smaller step is padded up to the next, a larger one runs eagerly."""

import numpy as np
from numpy.typing import NDArray

LARGEST_CAPTURE = 512


def default_capture_sizes(max_num_seqs: int, max_num_batched_tokens: int) -> tuple[int, ...]:
    """vLLM's default: 1, 2, 4, 8, 16, .. 256 by 8, then by 16, up to twice `max_num_seqs`, at most 512.

    Source: vLLM `VllmConfig._set_cudagraph_sizes` (0.11 to 0.28); never above `max_num_batched_tokens`.
    """
    limit = min(2 * max_num_seqs, LARGEST_CAPTURE, max_num_batched_tokens)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, LARGEST_CAPTURE + 1, 16)]
    return tuple(size for size in sizes if size <= limit)


def padded_tokens(tokens: NDArray[np.int64], capture_sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """The tokens a step of `tokens` really runs: the next capture size, or itself above the largest; 0 stays 0."""
    if not capture_sizes:
        return tokens
    sizes = np.array(sorted(capture_sizes), dtype=np.int64)
    next_size = sizes[np.minimum(np.searchsorted(sizes, tokens), len(sizes) - 1)]
    return np.where((tokens > 0) & (tokens <= sizes[-1]), next_size, tokens)
