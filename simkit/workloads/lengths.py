"""How long prompts and answers are."""

import math
from statistics import NormalDist
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simkit.workloads.quantiles import QuantileTable
from simkit.workloads.workload import I32

F64 = NDArray[np.float64]

Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]


class ConstantLength(BaseModel):
    """The same number of tokens each time."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["constant"] = "constant"
    tokens: Tokens

    def at(self, share: F64) -> F64:
        """The length that a share of all do not exceed."""
        return np.full(len(share), float(self.tokens))


class LogNormalLength(BaseModel):
    """exp of a normal variable of standard deviation `sigma`, with a stated median or mean; clipped to min and max.

    The mean of the unclipped variable is median * exp(sigma^2 / 2).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["lognormal"] = "lognormal"
    median_tokens: float | None = Field(default=None, gt=0, le=2**31 - 1)
    mean_tokens: float | None = Field(default=None, gt=0, le=2**31 - 1)
    sigma: float = Field(ge=0, le=5)  # of ln(tokens)
    min_tokens: Tokens = 1
    max_tokens: Tokens = 2**31 - 1

    @model_validator(mode="after")
    def _one_centre(self) -> Self:
        if (self.median_tokens is None) == (self.mean_tokens is None):
            raise ValueError("give exactly one of median_tokens and mean_tokens")
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is above max_tokens")
        return self

    def at(self, share: F64) -> F64:
        """The length that a share of all do not exceed."""
        if self.median_tokens is not None:
            mu = math.log(self.median_tokens)
        else:
            assert self.mean_tokens is not None, "the validator asked for one of them"
            mu = math.log(self.mean_tokens) - self.sigma**2 / 2
        with np.errstate(over="ignore"):
            return np.clip(np.exp(mu + self.sigma * normal_quantile(share)), self.min_tokens, self.max_tokens)


class QuantileLength(QuantileTable):
    """A table of quantiles."""

    kind: Literal["quantiles"] = "quantiles"


LengthSpec = Annotated[ConstantLength | LogNormalLength | QuantileLength, Field(discriminator="kind")]

LENGTHS: dict[str, type[ConstantLength] | type[LogNormalLength] | type[QuantileLength]] = {
    "constant": ConstantLength,
    "lognormal": LogNormalLength,
    "quantiles": QuantileLength,
}


def drawn(spec: LengthSpec, share: F64) -> I32:
    """[n] whole tokens, at least 1, of draws given as shares in [0, 1)."""
    return np.clip(np.rint(spec.at(share)), 1, 2**31 - 1).astype(np.int32)


def uniform_pairs(first: np.random.Generator, second: np.random.Generator, n: int, rank: float) -> tuple[F64, F64]:
    """Two columns of uniforms whose Spearman rank correlation is `rank`, -1 <= rank <= 1.

    A Gaussian copula; its normal variables correlate by r = 2 sin(pi rank / 6) (Kruskal 1958).
    """
    u = first.random(n)
    return u, correlated(u, second, rank)


def correlated(share: F64, rng: np.random.Generator, rank: float) -> F64:
    """Uniforms whose Spearman rank correlation with the uniforms `share` is `rank`, by the same copula."""
    if rank == 0:
        return rng.random(len(share))
    r = 2 * math.sin(math.pi * rank / 6)
    return normal_share(r * normal_quantile(share) + math.sqrt(max(0.0, 1 - r * r)) * rng.standard_normal(len(share)))


def normal_share(x: F64) -> F64:
    """The standard normal's distribution function."""
    return np.fromiter(map(NormalDist().cdf, x.tolist()), dtype=np.float64, count=len(x))


def normal_quantile(share: F64) -> F64:
    """The standard normal's quantiles; a share of 0 or 1 is taken as the nearest one between."""
    inside = np.clip(share, 1e-300, np.nextafter(1.0, 0.0))
    return np.fromiter(map(NormalDist().inv_cdf, inside.tolist()), dtype=np.float64, count=len(share))
