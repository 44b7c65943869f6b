"""The shapes of operators that one model of times is asked for, as values."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

DTYPE_BYTES = {
    "bf16": 2.0,
    "fp32": 4.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int8": 1.0,
    "int4": 0.5,
    "mxfp4": 0.5,
    "nvfp4": 0.5,
}


class AttentionShape(NamedTuple):
    """The attention of one layer on one GPU; a window of 0 is none."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    kv_dtype: str = "bf16"

    @property
    def kv_bytes(self) -> float:
        """Bytes of one token's keys and values."""
        return 2.0 * self.kv_heads * self.head_dim * DTYPE_BYTES[self.kv_dtype]


class LatentShape(NamedTuple):
    """Latent attention (MLA) of one layer on one GPU; the widths are DeepSeek-V3's."""

    heads: int
    kv_rank: int = 512
    rope_dim: int = 64
    query_dim: int = 192  # of one head, its rotary part included
    value_dim: int = 128
    kv_dtype: str = "bf16"


class MoeShape(NamedTuple):
    """The routed experts of one layer; `width` is as published, then cut in `tensor` slices or spread over `expert`."""

    hidden: int
    width: int
    experts: int
    top_k: int
    tensor: int = 1
    expert: int = 1
    dtype: str = "bf16"
    matrices: int = 3  # of an expert: gate, up and down; 2 where there is no gate


def read_contexts(text: str) -> list[tuple[int, int]]:
    """(requests, tokens of each) of a ragged batch written as `63x512 1x65536`; empty for an empty text.

    Raises ValueError for any other form.
    """
    pairs = []
    for part in text.split():
        count, separator, tokens = part.partition("x")
        if not separator or not count.isdigit() or not tokens.isdigit() or int(count) < 1 or int(tokens) < 1:
            raise ValueError(f"{part!r} is not REQUESTSxTOKENS")
        pairs.append((int(count), int(tokens)))
    return pairs


def context_array(text: str) -> I64:
    """The lengths of a ragged batch, i64[requests], from what `write_contexts` wrote."""
    return np.array([tokens for count, tokens in read_contexts(text) for _ in range(count)], dtype=np.int64)


def write_contexts(contexts: I64) -> str:
    """The lengths of a ragged batch as `read_contexts` reads them, shortest first."""
    tokens, counts = np.unique(contexts, return_counts=True)
    return " ".join(f"{count}x{length}" for count, length in zip(counts, tokens, strict=True))
