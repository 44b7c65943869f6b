"""How long schedulers believe an answer will be: the only view of output lengths that they get, with a stated error."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

I64 = NDArray[np.int64]

MOST_TOKENS = 2**31 - 1


class _Predictor(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(_Predictor):
    """The same for everybody: nothing is known of the one request."""

    kind: Literal["constant"] = "constant"
    tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS, description="default the workload's mean")

    def believed(self, output: I64) -> I64:
        """[n] tokens from the true lengths `output` [n]."""
        guess = round(float(output.mean())) if self.tokens is None and len(output) else self.tokens or 1
        return np.full(len(output), guess, dtype=np.int64)


class Oracle(_Predictor):
    """The truth: a bound on what prediction can bring."""

    kind: Literal["oracle"] = "oracle"

    def believed(self, output: I64) -> I64:
        """[n] tokens from the true lengths `output` [n]."""
        return output.copy()


class Noisy(_Predictor):
    """The truth times lognormal noise of median 1: half of all guesses are within a factor exp(0.674 sigma)."""

    kind: Literal["noisy"] = "noisy"
    sigma: float = Field(gt=0.0, le=10.0, allow_inf_nan=False, description="deviation of the log of the factor")
    seed: int = Field(default=0, ge=0)

    def believed(self, output: I64) -> I64:
        """[n] tokens from the true lengths `output` [n]."""
        factor = np.exp(self.sigma * np.random.default_rng(self.seed).standard_normal(len(output)))
        believed: I64 = np.rint(output * factor).clip(1, MOST_TOKENS).astype(np.int64)
        return believed


class Bucketed(_Predictor):
    """A classifier into equally full buckets of length, right with probability `accuracy`; it believes the median.

    Source of the form: S3 (Jin et al., NeurIPS 2023) classifies answers into 10 buckets of length. A wrong guess is
    any other bucket, equally likely.
    """

    kind: Literal["bucketed"] = "bucketed"
    buckets: int = Field(default=10, ge=1, le=10_000)
    accuracy: float = Field(default=1.0, ge=0.0, le=1.0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)

    def believed(self, output: I64) -> I64:
        """[n] tokens from the true lengths `output` [n]."""
        if not len(output):
            return output.copy()
        edges = np.unique(np.quantile(output, np.arange(1, self.buckets) / self.buckets, method="inverted_cdf"))
        bucket = np.searchsorted(edges, output, side="left")  # an edge is the largest length of its bucket
        used, bucket = np.unique(bucket, return_inverse=True)
        medians = np.array([round(float(np.median(output[bucket == b]))) for b in range(len(used))], dtype=np.int64)
        rng = np.random.default_rng(self.seed)
        wrong = rng.random(len(output)) >= self.accuracy
        if len(used) > 1:
            bucket = np.where(wrong, (bucket + rng.integers(1, len(used), len(output))) % len(used), bucket)
        believed: I64 = medians[bucket].clip(1, MOST_TOKENS)
        return believed


PredictorSpec = Annotated[Constant | Oracle | Noisy | Bucketed, Field(discriminator="kind")]
