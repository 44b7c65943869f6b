"""What an attention kernel is compiled for, and the nearest one that was measured."""

from collections.abc import Iterable, Iterator
from math import log2
from typing import TYPE_CHECKING, NamedTuple

from simkit.calibrate.operator_sizes import AttentionShape

if TYPE_CHECKING:
    import pandas as pd


class Kind(NamedTuple):
    """Head size, window (0 for none) and KV cache type: between these nothing is interpolated."""

    head_dim: int
    window: int
    kv_dtype: str


def kind_of(shape: AttentionShape) -> Kind:
    """The kind of a shape."""
    return Kind(shape.head_dim, shape.window, shape.kv_dtype)


def attention_shape(row: "pd.Series[int]") -> AttentionShape:
    """The shape that a row of an attention table names."""
    heads, kv_heads, head_dim, window = (int(row[name]) for name in ("heads", "kv_heads", "head_dim", "window"))
    return AttentionShape(heads, kv_heads, head_dim, window, str(row["kv_dtype"]))


def by_kind(frame: "pd.DataFrame") -> "Iterator[tuple[Kind, pd.DataFrame]]":
    """The rows of an attention table, kind by kind."""
    for _, part in frame.groupby(["head_dim", "window", "kv_dtype"]):
        yield kind_of(attention_shape(part.iloc[0])), part


def nearest_kind(known: Iterable[Kind], wanted: Kind) -> Kind:
    """The measured kind most like the one wanted: the same window first, then none; then head size; then cache type."""

    def unlike(kind: Kind) -> tuple[int, float, bool, Kind]:
        window = 0 if kind.window == wanted.window else (1 if kind.window == 0 else 2)
        return window, abs(log2(kind.head_dim / wanted.head_dim)), kind.kv_dtype != wanted.kv_dtype, kind

    return min(known, key=unlike)
