"""A chunk and decodes in one launch: what their attention takes together, from what each takes alone.

    together = longer + share x shorter

0 says that they run side by side, 1 one after the other; over 1 that they are in each other's way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.calibrate.attention_kind import attention_shape
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.provenance import Tag, Times

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]

SHAPE = ["kv_dtype", "heads", "kv_heads", "head_dim", "window"]
MOST = 2.0
Alone = Callable[[F64, F64, AttentionShape], Times]  # (batch, context tokens) of decodes, (chunk, past) of a prefill


@dataclass(frozen=True)
class MixedModel:
    """How much of the shorter part is added to the longer one."""

    share: float
    fitted_on: int  # launches; 0: not measured, one after the other is assumed

    def together(self, decode: Times, prefill: Times) -> Times:
        """Times of both parts in one launch."""
        ns = np.maximum(decode.ns, prefill.ns) + self.share * np.minimum(decode.ns, prefill.ns)
        known = Tag.INTERPOLATED if self.fitted_on else Tag.ASSUMED
        tag = np.where(np.minimum(decode.ns, prefill.ns) > 0, np.int8(known), np.int8(0))
        return Times(ns, np.maximum(tag, np.maximum(decode.tag, prefill.tag)).astype(np.int8))


APART = MixedModel(1.0, 0)


def fit_mixed(frame: "pd.DataFrame", decode_ns: Alone, prefill_ns: Alone) -> MixedModel:
    """The model of a profile's `attention_mixed` table: the share with the least sum of relative errors."""
    shares, weights = [], []
    for _, rows in frame.groupby(SHAPE):
        decode, prefill = alone_of(rows, decode_ns, prefill_ns)
        longer, shorter = np.maximum(decode.ns, prefill.ns), np.minimum(decode.ns, prefill.ns)
        ns = rows["median_ns"].to_numpy(np.float64)
        shares.append((ns - longer) / shorter)
        weights.append(shorter / ns)
    share = _weighted_median(np.concatenate(shares), np.concatenate(weights))
    return MixedModel(float(np.clip(share, 0.0, MOST)), len(frame))


def alone_of(rows: "pd.DataFrame", decode_ns: Alone, prefill_ns: Alone) -> tuple[Times, Times]:
    """The decodes and the chunks of mixed launches of one shape of heads, each timed alone."""
    shape = attention_shape(rows.iloc[0])
    sizes = ("batch", "context_tokens", "chunk", "past")
    batch, contexts, chunk, past = (rows[name].to_numpy(np.float64) for name in sizes)
    return decode_ns(batch, contexts, shape), prefill_ns(chunk, past, shape)


def _weighted_median(values: F64, weights: F64) -> float:
    """The minimum of sum weights |values - x| over x."""
    order = np.argsort(values)
    rising = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(rising, 0.5 * rising[-1])])
