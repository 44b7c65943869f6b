"""Which measurements to hold out: whole regions of sizes, never rows drawn at random.

A row drawn at random has its neighbours left in, and any table looks well predicted. A region leaves a hole that a
model has to span: all sizes of a shape, or all shapes' sizes of a range. Every rule is a fixed pattern over ranks or
octaves, so that nobody draws a lucky one. Points at the outer edge of a range stay in: beyond it is extrapolation,
which is another question.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.latent_attention import as_decode, as_prefill

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

BLOCK = 4  # neighbouring measured sizes of a block of tokens
CELL_OCTAVES = 2  # a cell of batch x context is 4 x 4 in size


class Region(NamedTuple):
    """A set of rows to hold out together."""

    name: str
    rule: str  # for people
    held: Flags  # [rows]


def regions(table: str, frame: "pd.DataFrame") -> list[Region]:
    """The regions of a table; those that would hold out nothing, or leave nothing, are left out."""
    found = {
        "gemm": _gemm,
        "attention_decode": _decode,
        "attention_prefill": _prefill,
        "mla_decode": lambda rows: _decode(as_decode(rows)),
        "mla_prefill": lambda rows: _prefill(as_prefill(rows).assign(kv_heads=1)),
        "attention_mixed": _mixed,
        "moe": _moe,
        "collective": _collective,
        "elementwise": _elementwise,
        "host": _host,
        "copy": _collective,
    }.get(table)
    if found is None:
        return []
    return [region for region in found(frame) if region.held.any() and not region.held.all()]


def rank(values: "pd.Series[int] | F64 | I64") -> I64:
    """The place of each value among the different ones, from 0."""
    array = np.asarray(values)
    found: I64 = np.searchsorted(np.unique(array), array).astype(np.int64)
    return found


def _octave(values: "pd.Series[int] | F64 | I64") -> I64:
    found: I64 = np.floor(np.log2(np.asarray(values, np.float64))).astype(np.int64)
    return found


def _gemm(frame: "pd.DataFrame") -> list[Region]:
    n, k, token = rank(frame["n"]), rank(frame["k"]), rank(frame["tokens"])
    inner = (token > 0) & (token < token.max())
    block = token // BLOCK
    return [
        Region("shapes", "all tokens of the (n, k) with (rank n + 2 rank k) mod 5 = 0", (n + 2 * k) % 5 == 0),
        Region(
            "token blocks of shapes",
            f"blocks of {BLOCK} neighbouring token counts, those with (block + rank n + 3 rank k) mod 5 = 0",
            inner & ((block + n + 3 * k) % 5 == 0),
        ),
        Region(
            "token blocks",
            f"every 4th block of {BLOCK} neighbouring token counts, of all shapes",
            inner & (block % 4 == 2),
        ),
    ]


def _decode(frame: "pd.DataFrame") -> list[Region]:
    even = (frame["contexts"] == "").to_numpy()
    batch = frame["batch"].to_numpy(np.float64)
    each = frame["context_tokens"].to_numpy(np.float64) / batch
    shape = _shapes(frame, ["kv_dtype", "heads", "kv_heads", "head_dim", "window"])
    inner = _inner(shape, batch, each) & even
    cell = _octave(batch) // CELL_OCTAVES + 2 * (_octave(each) // CELL_OCTAVES)
    return [
        Region(
            "cells",
            "cells of 2 octaves of batch x 2 octaves of context with (batch cell + 2 context cell) mod 5 = 0",
            inner & (cell % 5 == 0),
        ),
        Region("heads", _HEADS_RULE, _heads(frame) & even),
    ]


def _prefill(frame: "pd.DataFrame") -> list[Region]:
    batch, chunk = frame["batch"].to_numpy(np.float64), frame["chunk"].to_numpy(np.float64)
    past = frame["past"].to_numpy(np.float64)
    shape = _shapes(frame, ["kv_dtype", "heads", "kv_heads", "head_dim", "window"])
    found = [Region("heads", _HEADS_RULE, _heads(frame))]
    if len(np.unique(past)) > 1:
        inner = _inner(shape, chunk, past + 1.0)
        cell = _octave(chunk) // CELL_OCTAVES + 2 * (_octave(past + 64.0) // CELL_OCTAVES)
        rule = "cells of 2 octaves of chunk x 2 octaves of past + 64 with (chunk cell + 2 past cell) mod 5 = 0"
        found += [
            Region("cells", rule, inner & (cell % 5 == 0)),
            Region("any past", "all chunks behind a past: only those without are left", past > 0),
        ]
    else:
        inner = _inner(shape, batch, chunk)
        cell = _octave(batch) // CELL_OCTAVES + 2 * (_octave(chunk) // CELL_OCTAVES)
        rule = (
            "cells of 2 octaves of batch x 2 octaves of chunk with (batch cell + 2 chunk cell) mod 5 = 0, of all shapes"
        )
        found.insert(0, Region("cells", rule, inner & (cell % 5 == 0)))
    return found


def _moe(frame: "pd.DataFrame") -> list[Region]:
    config = _shapes(frame, ["hidden", "width", "experts", "top_k", "tensor", "expert"])
    model = _shapes(frame, ["hidden", "width", "experts", "top_k"])
    token = rank(frame["tokens"])
    inner = (token > 0) & (token < token.max())
    return [
        Region("configurations", "every 5th way to cut a model's experts, all tokens", config % 5 == 2),
        Region("models", "every 6th (hidden, width, experts, top k), all cuts and tokens", model % 6 == 3),
        Region("token blocks", "every 4th block of 3 neighbouring token counts", inner & (token // 3 % 4 == 2)),
    ]


def _collective(frame: "pd.DataFrame") -> list[Region]:
    octave = _octave(frame["bytes"])
    inner = (octave > octave.min()) & (octave < octave.max())
    return [Region("size blocks", "every 3rd block of 2 octaves of bytes", inner & (octave // 2 % 3 == 1))]


def _elementwise(frame: "pd.DataFrame") -> list[Region]:
    token = rank(frame["tokens"])
    inner = (token > 0) & (token < token.max())
    return [Region("token blocks", f"every 4th block of {BLOCK} token counts", inner & (token // BLOCK % 4 == 2))]


def _mixed(frame: "pd.DataFrame") -> list[Region]:
    return [Region("chunks", "every other size of a chunk", rank(frame["chunk"]) % 2 == 1)]


def _host(frame: "pd.DataFrame") -> list[Region]:
    place = rank(frame["requests"])
    inner = (place > 0) & (place < place.max()) & frame["part"].isin(("step", "prepare")).to_numpy()
    return [Region("requests", "every 3rd count of requests", inner & (place % 3 == 1))]


_HEADS_RULE = "all sizes of the (heads, KV heads) with (rank heads + 2 rank KV heads) mod 5 = 1 in their kind of kernel"


def _heads(frame: "pd.DataFrame") -> Flags:
    """Ranks are among the shapes of one head size and window, so that each kind loses a fifth of its shapes."""
    held = np.zeros(len(frame), np.bool_)
    for rows in frame.groupby(["head_dim", "window"]).indices.values():
        part = frame.iloc[rows]
        held[rows] = (rank(part["heads"]) + 2 * rank(part["kv_heads"])) % 5 == 1
    return held


def _shapes(frame: "pd.DataFrame", columns: list[str]) -> I64:
    """A number for each different combination, in sorted order."""
    return np.asarray(frame.groupby(columns, sort=True).ngroup(), np.int64)


def _inner(shape: I64, x: F64, y: F64) -> Flags:
    """Rows with measured neighbours on all four sides: not the smallest or largest x of their shape and y, nor y."""
    import pandas as pd

    rows = pd.DataFrame({"shape": shape, "x": x, "y": y})
    of_y, of_x = rows.groupby(["shape", "y"])["x"], rows.groupby(["shape", "x"])["y"]
    inside = (rows["x"] > of_y.transform("min")) & (rows["x"] < of_y.transform("max"))
    inside &= (rows["y"] > of_x.transform("min")) & (rows["y"] < of_x.transform("max"))
    return inside.to_numpy()
