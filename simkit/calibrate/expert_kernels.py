"""The kernels that compute the experts of one precision, each with its law, and which of them a configuration runs.

vLLM takes other kernels for some cuts (experts spread over GPUs) and for some models (activations that a kernel lacks),
which sizes do not tell. A law is each kernel's own, however few models it was timed with: sharing the most timed one's,
times a factor, predicts other cuts of those models worse (H200, 4 bits: 6.1 % for 5.5) and other models alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.expert_fit import fit_law
from simkit.calibrate.expert_law import Law, Layers
from simkit.calibrate.expert_routing import TILE_ROWS, Routing, routed
from simkit.calibrate.operator_sizes import DTYPE_BYTES, MoeShape

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]

SIZES = ("hidden", "width", "experts", "top_k", "tensor", "expert", "matrices")


def moe_shape(sizes: Iterable[int], dtype: str) -> MoeShape:
    """The shape of sizes in the order of `SIZES`."""
    hidden, width, experts, top_k, tensor, expert, matrices = (int(size) for size in sizes)
    return MoeShape(hidden, width, experts, top_k, tensor, expert, dtype, matrices)


def model_of(shape: MoeShape) -> tuple[int, ...]:
    """The published sizes, whatever the cut."""
    return shape.hidden, shape.width, shape.experts, shape.top_k


def layers_of(tokens: F64, shape: MoeShape, routing: str) -> Layers:
    """A configuration's layer at steps of `tokens`, f64[n], at least 1."""
    found = routed(tokens, Routing(shape.experts, shape.top_k, shape.expert, routing))
    width = shape.width / shape.tensor
    sizes = (float(shape.hidden), width, float(shape.matrices), DTYPE_BYTES[shape.dtype])
    hidden, slices, matrices, element_bytes = (np.full(len(tokens), size) for size in sizes)
    return Layers(tokens * shape.top_k, hidden, slices, matrices, element_bytes, *found)


@dataclass(frozen=True)
class Kernels:
    """The laws of one precision."""

    laws: dict[str, Law]  # by the kernel's name
    most: str  # the one of most rows
    ran: dict[MoeShape, str]  # by each configuration that was timed

    def of(self, shape: MoeShape) -> str:
        """The kernel that a configuration runs, or would: what most of the same model's, or of those cut alike, ran."""
        if shape in self.ran:
            return self.ran[shape]
        # a vote for each model and whether it is spread
        votes = {(name, known.expert > 1, model_of(known)) for known, name in self.ran.items()}

        def likely(name: str) -> tuple[int, int, int, bool]:
            its = [
                (spread == (shape.expert > 1), model == model_of(shape)) for ran, spread, model in votes if ran == name
            ]
            both, own, alike = sum(a and b for a, b in its), sum(b for _, b in its), sum(a for a, _ in its)
            return both, own, alike, name == self.most

        return max(self.laws, key=likely)

    def log_ns(self, tokens: F64, shape: MoeShape, routing: str) -> F64:
        """Log times by the law, f64[n]."""
        return self.laws[self.of(shape)].log_ns(layers_of(tokens, shape, routing))


def fit_kernels(part: "pd.DataFrame", dtype: str) -> tuple[Kernels, F64]:
    """The laws of a precision's kernels, and f64[rows] how far each row's log time is above them."""
    log_ns = np.log(part["median_ns"].to_numpy(np.float64))
    ran = part["kernel"].fillna("").astype(str).to_numpy()
    layers = _layers(part, dtype)
    names, counts = np.unique(ran, return_counts=True)
    laws, off = {}, log_ns.copy()
    for name in names:
        its = ran == name
        laws[str(name)] = fit_law(layers.some(its), np.exp(log_ns[its]))
        off[its] -= laws[str(name)].log_ns(layers.some(its))
    first = part.assign(kernel=ran).drop_duplicates(list(SIZES))
    shapes = [moe_shape(sizes, dtype) for sizes in first[list(SIZES)].to_numpy(np.int64)]
    timed = dict(zip(shapes, first["kernel"].astype(str), strict=True))
    return Kernels(laws, str(names[counts.argmax()]), timed), off


def _layers(part: "pd.DataFrame", dtype: str) -> Layers:
    """The layers of a table's rows, in their order."""
    tokens, sizes = part["tokens"].to_numpy(np.float64), part[list(SIZES)].to_numpy(np.int64)
    routings = part["routing"].astype(str).to_numpy()
    out = [np.empty((len(TILE_ROWS), len(part)) if name == "tiles" else len(part)) for name in Layers._fields]
    for rows in part.groupby([*SIZES, "routing"]).indices.values():
        found = layers_of(tokens[rows], moe_shape(sizes[rows[0]], dtype), str(routings[rows[0]]))
        for whole, some in zip(out, found, strict=True):
            whole[..., rows] = some
    return Layers(*out)
