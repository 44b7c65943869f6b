"""Measurements that something disturbed: single points far above their neighbours, where no other row has a step.

A kernel's stairs stand at the same size in many rows, and go on; what a busy host adds stands alone.
"""

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

ABOVE = 0.4  # log time over the median of the neighbourhood; 0.2 to 0.4 predict alike
REACH = 2  # neighbours on each side
MOST_ROWS = 0.05  # of a column: what more rows have is the kernel's
FEWEST_ROWS = 20  # to tell one from the other


def undisturbed(ratio: F64) -> tuple[F64, Flags]:
    """f64[rows, sizes] log ratios with disturbed points put on the median of their neighbourhood, and which these were.

    NaN is no measurement and stays.
    """
    rows, sizes = ratio.shape
    if rows < FEWEST_ROWS or sizes < 2 * REACH + 1:
        return ratio, np.zeros(ratio.shape, np.bool_)
    padded = np.pad(ratio, ((0, 0), (REACH, REACH)), constant_values=np.nan)
    around = np.stack([padded[:, i : i + sizes] for i in range(2 * REACH + 1)])
    around = np.where(np.isnan(around).all(axis=0), 0.0, around)
    middle = np.nanmedian(around, axis=0)
    high = ratio - middle > ABOVE
    alone = high & (high.mean(axis=0) < MOST_ROWS)
    return np.where(alone, middle, ratio), alone
