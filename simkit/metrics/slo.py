"""What is promised: `ttft_p99_s: 0.5` says that 99 % of requests get their first token within half a second.

Two more forms hold each request to several limits at once: `ttft_s` and its like are limits of single requests, and
`attainment` says which share of the requests must meet all of them, `goodput_per_s` how many a second.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from simkit.errors import InputError, suggestion

METRICS = ("ttft", "tpot", "itl", "ntpot", "e2e", "queue")
SHORTEST_S, LONGEST_S = 1e-9, 1e9  # the tick of the engine's clock, and 32 years: what lies outside is no latency
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")  # those printed; a target may name any percentile
EACH = "each"  # the statistic of a limit that single requests are held to
ATTAINMENT, GOODPUT = "attainment", "goodput_per_s"


@dataclass(frozen=True)
class Target:
    """One latency target, `ttft_p99_s <= limit_s`, or a limit of each request, `ttft_s <= limit_s`."""

    metric: str
    statistic: str
    limit_s: float

    @property
    def key(self) -> str:
        """The name that configurations and load points use, `ttft_p99_s`."""
        return f"{self.metric}_s" if self.statistic == EACH else f"{self.metric}_{self.statistic}_s"

    @property
    def label(self) -> str:
        """The name that people read, `TTFT p99`."""
        return f"{self.metric.upper() if self.metric != 'queue' else 'Queue'} {self.statistic}"


@dataclass(frozen=True)
class Promise:
    """An SLO taken apart."""

    targets: tuple[Target, ...]  # of statistics over requests
    limits: tuple[Target, ...]  # that each request is held to: those given, else those of the targets
    attainment: float | None  # share of the requests that must meet all limits
    goodput_per_s: float | None  # requests a second that must meet all limits

    def __bool__(self) -> bool:
        return bool(self.targets) or self.attainment is not None or self.goodput_per_s is not None


def quantile(statistic: str) -> float | None:
    """The share of `p50` (0.5), `p99`, `p999` (0.999; digits after the second are decimals); None for no percentile.

    >>> quantile("p999")
    0.999
    """
    match = re.fullmatch(r"p(\d{1,2})(\d{0,3})", statistic)
    if not match:
        return None
    share = float(f"{match[1]}.{match[2] or 0}") / 100
    return round(share, 7) if share > 0 else None


def targets(slo: Mapping[str, float]) -> list[Target]:
    """The targets of statistics in an SLO mapping, in its order; `InputError` for a name or a value that makes none."""
    return list(promise(slo).targets)


def promise(slo: Mapping[str, float]) -> Promise:
    """An SLO mapping taken apart; `InputError` for a name or a value that makes none."""
    latencies: list[Target] = []
    limits: list[Target] = []
    for key, value in slo.items():
        if key in (ATTAINMENT, GOODPUT):
            continue
        target = _target(key, value)
        (limits if target.statistic == EACH else latencies).append(target)
    attainment, goodput = slo.get(ATTAINMENT), slo.get(GOODPUT)
    if attainment is not None and not (_is_number(attainment) and 0 < attainment <= 1):
        raise InputError(f"slo: {ATTAINMENT}={attainment!r}: a share above 0 and at most 1 is wanted, 0.95 for 95 %")
    if goodput is not None and not (_is_number(goodput) and 0 < goodput <= LONGEST_S):
        raise InputError(f"slo: {GOODPUT}={goodput!r}: a positive number of requests a second is wanted")
    if limits and attainment is None and goodput is None:
        raise InputError(
            f"slo: {limits[0].key} is a limit of each request; say which share must meet all such limits, "
            f"for instance {ATTAINMENT}: 0.95, or name a statistic: {limits[0].metric}_p99_s"
        )
    if (attainment is not None or goodput is not None) and not (limits or latencies):
        raise InputError(f"slo: {ATTAINMENT} and {GOODPUT} need limits, for instance ttft_s: 1.0 and tpot_s: 0.05")
    return Promise(tuple(latencies), tuple(limits or latencies), attainment, goodput)


def _target(key: str, limit: float) -> Target:
    match = re.fullmatch(r"([a-z0-9]+?)(?:_([a-z0-9]+))?_s", key)
    each = match is not None and match[2] is None
    known_statistic = match is not None and (
        each or match[2] in STATISTICS or (match[2] is not None and quantile(match[2]) is not None)
    )
    if not match or match[1] not in METRICS or not known_statistic:
        known = [f"{metric}_{statistic}_s" for metric in METRICS for statistic in STATISTICS]
        raise InputError(f"slo: {key}: not a latency target; {suggestion(key, [*known, ATTAINMENT, GOODPUT])}")
    if each and match[1] == "itl":
        raise InputError("slo: itl_s: gaps are pooled over requests, so no request has one; take itl_p99_s or tpot_s")
    if not _is_number(limit) or not SHORTEST_S <= limit <= LONGEST_S:
        raise InputError(f"slo: {key}={limit!r}: a limit must be a positive number of seconds, at most {LONGEST_S:.0e}")
    return Target(match[1], match[2] or EACH, float(limit))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
