"""How far predictions were off on steps that the fit had not seen."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FOLDS = 5

Share = Annotated[float, Field(ge=-1.0, le=1e9, allow_inf_nan=False)]


class HeldOutError(BaseModel):
    """Errors of a part of the steps, as shares of the measured time: 0.07 is 7 %."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    part: str = Field(max_length=100, description="which steps")
    steps: int = Field(ge=1)
    median_abs: Share = Field(ge=0.0)
    p90_abs: Share = Field(ge=0.0)
    max_abs: Share = Field(ge=0.0)
    bias: Share = Field(description="all predicted time / all measured time - 1")
    drift: Share = Field(description="the bias of the fold, out of `folds_of`, that was worst predicted")


def held_out_error(part: str, predicted_s: F64, measured_s: F64, fold: I64) -> HeldOutError:
    """The errors of f64[n] predictions of n >= 1 measured times > 0, each of which belongs to a fold, i64[n].

    Biases of folds cancel in their sum, because each fold is predicted from the others; the worst one is kept too.
    """
    biases = [predicted_s[fold == k].sum() / measured_s[fold == k].sum() - 1.0 for k in np.unique(fold)]
    off = np.abs(predicted_s / measured_s - 1.0)
    return HeldOutError(
        part=part,
        steps=len(off),
        median_abs=float(np.median(off)),
        p90_abs=float(np.percentile(off, 90)),
        max_abs=float(off.max()),
        bias=float(predicted_s.sum() / measured_s.sum() - 1.0),
        drift=float(max(biases, key=abs)),
    )


def folds_of(lengths: list[int]) -> I64:
    """The fold, 0 .. k - 1, of each step of runs that follow each other, i64[sum(lengths)].

    A fold is a whole run where there are several, else a fifth of the run: neighbouring steps share the machine's mood
    and the same requests, so folds drawn step by step would let a fit see its own test.
    """
    if len(lengths) > 1:
        return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    return np.arange(lengths[0], dtype=np.int64) * FOLDS // lengths[0]
