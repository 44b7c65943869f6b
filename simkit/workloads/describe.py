"""What a workload is like, in numbers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkit.workloads.sharing import Sharing, ideal_sharing
from simkit.workloads.workload import I64, Workload

F64 = NDArray[np.float64]
Numbers = NDArray[np.integer] | F64

WINDOWS_S = (1, 10, 60)
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class Counts:
    """Arrivals counted in windows of equal length; only whole windows from the first arrival's are counted."""

    window_s: int
    dispersion: float  # variance over mean of the counts: 1 for Poisson
    peak_to_mean: float


@dataclass(frozen=True)
class LengthSummary:
    """Tokens."""

    mean: float
    total: int
    quantiles: dict[float, float]  # by share, `QUANTILES`, linear between order statistics


@dataclass(frozen=True)
class Description:
    """A workload's statistics; None where they are not defined (one request, one instant)."""

    name: str
    requests: int
    span_s: float  # from the trace's start to the last arrival
    rate_per_s: float | None  # gaps over their sum, as `transform.rate_to` scales it
    gap_cv: float | None  # standard deviation over mean of the gaps between arrivals: 1 for Poisson
    counts: tuple[Counts, ...]  # for `WINDOWS_S`, those that fit twice into the span
    prompt_tokens: LengthSummary
    output_tokens: LengthSummary
    longest_request_tokens: int  # prompt and answer together
    rank_correlation: float | None  # Spearman's, of prompt and answer lengths
    sharing: Sharing | None
    sessions: int | None
    tick_us: int
    dropped_rows: dict[str, int]
    transforms: tuple[str, ...]
    notes: tuple[str, ...]


def describe(workload: Workload) -> Description:
    """The statistics of a workload of at least one request."""
    span_s = int(workload.arrival_us[-1]) / 1e6
    gaps = np.diff(workload.arrival_us).astype(np.float64)
    both = workload.prompt_tokens.astype(np.int64) + workload.output_tokens
    counts = (window_counts(workload.arrival_us, window_s) for window_s in WINDOWS_S)
    return Description(
        name=workload.name,
        requests=len(workload),
        span_s=span_s,
        rate_per_s=1e6 / float(gaps.mean()) if len(gaps) and gaps.mean() > 0 else None,
        gap_cv=float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0 else None,
        counts=tuple(c for c in counts if c is not None),
        prompt_tokens=length_summary(workload.prompt_tokens),
        output_tokens=length_summary(workload.output_tokens),
        longest_request_tokens=int(both.max()),
        rank_correlation=spearman(workload.prompt_tokens, workload.output_tokens),
        sharing=ideal_sharing(workload),
        sessions=None if workload.session_id is None else len({s for s in workload.session_id if s}),
        tick_us=workload.tick_us,
        dropped_rows=dict(workload.dropped_rows),
        transforms=workload.transforms,
        notes=workload.notes,
    )


def window_counts(arrival_us: I64, window_s: int) -> Counts | None:
    """Dispersion and peak of the arrivals in whole windows of `window_s` from 0; None for fewer than two windows."""
    window_us = window_s * 1_000_000
    windows = int(arrival_us[-1] // window_us)
    if windows < 2:
        return None
    # sparse counting: a trace in epoch time has billions of empty windows
    which, count = np.unique(arrival_us // window_us, return_counts=True)
    count = count[which < windows].astype(np.float64)
    if len(count) == 0:
        return None
    mean = count.sum() / windows
    variance = ((count - mean) ** 2).sum() / windows + mean**2 * (windows - len(count)) / windows
    return Counts(window_s, float(variance / mean), float(count.max() / mean))


def length_summary(tokens: NDArray[np.integer]) -> LengthSummary:
    """Mean, sum and quantiles of lengths."""
    found = np.quantile(tokens, QUANTILES)
    total = int(tokens.sum(dtype=np.int64))
    return LengthSummary(total / len(tokens), total, dict(zip(QUANTILES, found.tolist(), strict=True)))


def spearman(x: Numbers, y: Numbers) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None where one side does not vary."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 0 else None


def _ranks(values: Numbers) -> F64:
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[which], dtype=np.float64)
