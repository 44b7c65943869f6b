"""Latent attention (MLA) in the terms of grouped attention, so that the same models time it.

Decoding, all heads share one vector of `kv_rank + rope_dim` values a token, read once: as much as keys and values of
one head half as wide. The line's prices are fitted, so that its FLOPs are a constant times too few does not matter. In
a prefill keys and values of every head are spelt out: a product of `query_dim` and one of `value_dim` values a pair, as
many FLOPs and bytes as heads of their mean width.
"""

from typing import TYPE_CHECKING

from simkit.calibrate.operator_sizes import AttentionShape, LatentShape

if TYPE_CHECKING:
    import pandas as pd


def decode_shape(shape: LatentShape) -> AttentionShape:
    """One KV head as wide as half of the latent."""
    return AttentionShape(shape.heads, 1, (shape.kv_rank + shape.rope_dim) // 2, 0, shape.kv_dtype)


def prefill_shape(shape: LatentShape) -> AttentionShape:
    """As many KV heads as query heads, as wide as the mean of queries and values."""
    return AttentionShape(shape.heads, shape.heads, (shape.query_dim + shape.value_dim) // 2, 0, shape.kv_dtype)


def as_decode(frame: "pd.DataFrame") -> "pd.DataFrame":
    """An `mla_decode` table with the columns of `attention_decode`."""
    width = (frame["kv_rank"] + frame["rope_dim"]) // 2
    return frame.assign(kv_heads=1, head_dim=width, window=0, contexts="")


def as_prefill(frame: "pd.DataFrame") -> "pd.DataFrame":
    """An `mla_prefill` table with the columns of `attention_prefill`."""
    width = (frame["query_dim"] + frame["value_dim"]) // 2
    return frame.assign(kv_heads=frame["heads"], head_dim=width, window=0)
