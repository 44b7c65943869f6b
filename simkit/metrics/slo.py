"""Latency targets: `ttft_p99_s: 0.5` says that 99 % of requests get their first token within half a second."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from simkit.errors import InputError, suggestion

METRICS = ("ttft", "tpot", "itl", "ntpot", "e2e", "queue")
SHORTEST_S, LONGEST_S = 1e-9, 1e9  # the tick of the engine's clock, and 32 years: what lies outside is no latency
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")


@dataclass(frozen=True)
class Target:
    """One latency target, `ttft_p99_s <= limit_s`."""

    metric: str
    statistic: str
    limit_s: float

    @property
    def key(self) -> str:
        """The name that configurations and load points use, `ttft_p99_s`."""
        return f"{self.metric}_{self.statistic}_s"

    @property
    def label(self) -> str:
        """The name that people read, `TTFT p99`."""
        return f"{self.metric.upper() if self.metric != 'queue' else 'Queue'} {self.statistic}"


def targets(slo: Mapping[str, float]) -> list[Target]:
    """The targets of an SLO mapping, in its order; `InputError` for a name or a limit that makes none."""
    found = []
    for key, limit in slo.items():
        match = re.fullmatch(r"([a-z0-9]+)_([a-z0-9]+)_s", key)
        if not match or match[1] not in METRICS or match[2] not in STATISTICS:
            known = [f"{metric}_{statistic}_s" for metric in METRICS for statistic in STATISTICS]
            raise InputError(f"slo: {key}: not a latency target; {suggestion(key, known)}")
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not SHORTEST_S <= limit <= LONGEST_S:
            raise InputError(
                f"slo: {key}={limit!r}: a limit must be a positive number of seconds, at most {LONGEST_S:.0e}"
            )
        found.append(Target(match[1], match[2], float(limit)))
    return found
