"""When requests arrive: renewal processes, whose gaps are independent draws from one distribution.

All specs state a mean rate; the coefficient of variation of the gaps (CV, 1 for Poisson, 0 for constant) says how
bursty they are. vLLM's `--burstiness` is the gamma's shape, 1 / CV^2.
"""

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from simkit.errors import InputError, suggestion
from simkit.workloads.cells import MAX_TIME_US
from simkit.workloads.quantiles import QuantileTable
from simkit.workloads.workload import I64

F64 = NDArray[np.float64]

MAX_REQUESTS = 100_000_000

Rate = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class Constant(BaseModel):
    """Equal gaps."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["constant"] = "constant"
    rate_per_s: Rate

    def gaps_s(self, rng: np.random.Generator, n: int) -> F64:
        """[n] seconds."""
        return np.full(n, 1 / self.rate_per_s)


class Poisson(BaseModel):
    """Exponential gaps: many independent users."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["poisson"] = "poisson"
    rate_per_s: Rate

    def gaps_s(self, rng: np.random.Generator, n: int) -> F64:
        """[n] seconds."""
        return rng.exponential(1 / self.rate_per_s, n)


class Gamma(BaseModel):
    """Gamma gaps of shape 1 / CV^2, so that mean and CV are as stated."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["gamma"] = "gamma"
    rate_per_s: Rate
    cv: float = Field(gt=0, le=30, allow_inf_nan=False)

    def gaps_s(self, rng: np.random.Generator, n: int) -> F64:
        """[n] seconds."""
        shape = 1 / self.cv**2
        return rng.gamma(shape, 1 / (shape * self.rate_per_s), n)


class Weibull(BaseModel):
    """Weibull gaps, whose shape is solved for from the CV; heavier in the tail than the gamma of the same CV."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["weibull"] = "weibull"
    rate_per_s: Rate
    cv: float = Field(ge=0.02, le=30, allow_inf_nan=False)

    def gaps_s(self, rng: np.random.Generator, n: int) -> F64:
        """[n] seconds."""
        shape = weibull_shape(self.cv)
        return rng.weibull(shape, n) / (self.rate_per_s * math.gamma(1 + 1 / shape))


class EmpiricalGaps(BaseModel):
    """Gaps drawn from a table of quantiles, scaled to the rate: for streams that no common distribution fits."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["quantiles"] = "quantiles"
    rate_per_s: Rate
    gap_s: QuantileTable

    def gaps_s(self, rng: np.random.Generator, n: int) -> F64:
        """[n] seconds."""
        mean = self.gap_s.mean()
        if mean <= 0:
            raise InputError("gap_s: all gaps are 0; give a table with some above it")
        return self.gap_s.at(rng.random(n)) / (mean * self.rate_per_s)


ArrivalSpec = Annotated[Constant | Poisson | Gamma | Weibull | EmpiricalGaps, Field(discriminator="kind")]

ARRIVALS: dict[str, type[Constant] | type[Poisson] | type[Gamma] | type[Weibull] | type[EmpiricalGaps]] = {
    "constant": Constant,
    "poisson": Poisson,
    "gamma": Gamma,
    "weibull": Weibull,
    "quantiles": EmpiricalGaps,
}

WITH_CV = ("gamma", "weibull")
"""Those whose coefficient of variation is chosen."""


def arrival_spec(
    kind: str, rate_per_s: float, cv: float | None = None, gaps: QuantileTable | None = None
) -> ArrivalSpec:
    """An arrival process by name; raises InputError for a name or figure that cannot be."""
    if kind not in ARRIVALS:
        raise InputError(f"arrivals {kind!r} is not known; {suggestion(kind, ARRIVALS)}")
    if not 0 < rate_per_s <= 1e9:
        raise InputError(f"rate {rate_per_s:g}: a rate above 0 and at most 1e9 requests/s is wanted")
    if kind in WITH_CV:
        if cv is None:
            raise InputError(f"arrivals {kind!r} need a coefficient of variation, for instance --cv 2")
        if not 0.02 <= cv <= 30:
            raise InputError(f"cv {cv:g}: between 0.02 and 30 is wanted; for 0 take --arrivals constant")
        return Gamma(rate_per_s=rate_per_s, cv=cv) if kind == "gamma" else Weibull(rate_per_s=rate_per_s, cv=cv)
    if cv is not None:
        raise InputError(f"cv {cv:g}: is of gamma and weibull gaps; take one of these, or leave it out for {kind}")
    if kind == "quantiles":
        if gaps is None:
            raise InputError("arrivals 'quantiles' need a table of gaps; give gap_s in a generator's spec")
        return EmpiricalGaps(rate_per_s=rate_per_s, gap_s=gaps)
    return Constant(rate_per_s=rate_per_s) if kind == "constant" else Poisson(rate_per_s=rate_per_s)


def weibull_shape(cv: float) -> float:
    """The shape k with CV^2 = Gamma(1 + 2/k) / Gamma(1 + 1/k)^2 - 1, by bisection; the CV falls as k rises."""
    low, high = 0.05, 200.0
    for _ in range(100):
        k = math.sqrt(low * high)
        excess = math.lgamma(1 + 2 / k) - 2 * math.lgamma(1 + 1 / k) - math.log1p(cv**2)
        low, high = (k, high) if excess > 0 else (low, k)
    return math.sqrt(low * high)


def arrivals_us(spec: ArrivalSpec, rng: np.random.Generator, requests: int) -> I64:
    """[requests] sorted times in us; the first request arrives after one gap."""
    if not 1 <= requests <= MAX_REQUESTS:
        raise InputError(f"requests={requests}: between 1 and {MAX_REQUESTS} requests can be generated")
    return _microseconds(np.cumsum(spec.gaps_s(rng, requests)))


def arrivals_until_us(spec: ArrivalSpec, rng: np.random.Generator, duration_s: float) -> I64:
    """The sorted times in us, of all requests that arrive before `duration_s`; perhaps none."""
    expected = spec.rate_per_s * duration_s
    if not 0 < expected <= MAX_REQUESTS:
        raise InputError(f"duration_s={duration_s:g}: at {spec.rate_per_s:g}/s it would hold {expected:g} requests")
    batch = int(expected + 4 * math.sqrt(expected)) + 16
    times, last = [], 0.0
    while last < duration_s:
        gaps = spec.gaps_s(rng, batch)
        times.append(last + np.cumsum(gaps))
        last = float(times[-1][-1])
    together = np.concatenate(times)
    return _microseconds(together[together < duration_s])


def _microseconds(seconds: F64) -> I64:
    if len(seconds) and seconds[-1] * 1e6 > MAX_TIME_US:
        raise InputError(
            f"the last request would arrive after {seconds[-1]:.3g} s, more than a century; raise the rate"
        )
    return np.rint(seconds * 1e6).astype(np.int64)
