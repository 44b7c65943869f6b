"""The replica with the highest weighted sum of scores, as in llm-d's scheduler.

Source: llm-d inference scheduler and the Gateway API inference extension: filter, score, pick; scores are between 0 and
1. queue-scorer: 1 for the shortest queue, 0 for the longest, linear between; kv-cache-utilization-scorer: 1 - share in
use; prefix-cache-scorer: share of the prompt's blocks that are cached; the highest sum wins, ties at random.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simkit.cluster.routers.least_outstanding import least
from simkit.cluster.routers.prefix_aware import cached
from simkit.cluster.routers.prefix_index import PrefixIndex
from simkit.cluster.routers.router import View


class Weighted(BaseModel):
    """Weights of the scores; the defaults are an example of llm-d's documentation (queue 2, prefix 3)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queue: float = Field(default=2.0, ge=0, allow_inf_nan=False, description="few requests waiting")
    prefix: float = Field(default=3.0, ge=0, allow_inf_nan=False, description="much of the prompt cached")
    kv: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="much of the KV cache free")
    outstanding: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="few requests unanswered")
    session: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="served this session last")
    exact: bool = Field(default=False, description="look into the replicas' caches instead of at what was sent")

    @model_validator(mode="after")
    def _some_weight(self) -> "Weighted":
        if self.queue + self.prefix + self.kv + self.outstanding + self.session == 0:
            raise ValueError("all weights are 0; give at least one")
        return self

    def router(self, rng: np.random.Generator) -> "BestScore":
        """A router that draws from `rng`, once a request."""
        return BestScore(self, rng)


class BestScore:
    """Adds scores up."""

    def __init__(self, settings: Weighted, rng: np.random.Generator) -> None:
        self._settings = settings
        self._rng = rng
        self._index = PrefixIndex()
        self._last: dict[str, int] = {}  # session -> number of the replica that served it last

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request."""
        total = np.zeros(len(fleet))
        for weight, score in (
            (self._settings.queue, self._queue),
            (self._settings.prefix, self._prefix),
            (self._settings.kv, self._kv),
            (self._settings.outstanding, self._outstanding),
            (self._settings.session, self._session),
        ):
            if weight > 0:
                total += weight * np.asarray(score(request, fleet))
        # sums that differ by rounding only are equal
        choice = least([-round(value, 12) for value in total.tolist()], float(self._rng.random()))
        if self._settings.prefix > 0 and not self._settings.exact:
            most = max(1, fleet.kv_tokens(choice) // fleet.content_tokens())
            self._index.sent(fleet.content(request), fleet.number(choice), most)
        self._last[fleet.session(request)] = fleet.number(choice)
        return choice

    def _queue(self, request: int, fleet: View) -> list[float]:
        return _fewest([fleet.running_and_waiting(i)[1] for i in range(len(fleet))])

    def _outstanding(self, request: int, fleet: View) -> list[float]:
        return _fewest([fleet.outstanding(i) for i in range(len(fleet))])

    def _kv(self, request: int, fleet: View) -> list[float]:
        return [1.0 - fleet.kv_used(i) for i in range(len(fleet))]

    def _prefix(self, request: int, fleet: View) -> list[float]:
        prompt = max(1, fleet.prompt_tokens(request))
        return [tokens / prompt for tokens in cached(request, fleet, self._index, self._settings.exact)]

    def _session(self, request: int, fleet: View) -> list[float]:
        session = fleet.session(request)
        last = self._last.get(session) if session else None
        return [1.0 if fleet.number(i) == last else 0.0 for i in range(len(fleet))]


def _fewest(counts: list[int]) -> list[float]:
    """1 for the smallest, 0 for the largest, linear between; 1 for all where all are equal."""
    low, high = min(counts), max(counts)
    return [(high - count) / (high - low) if high > low else 1.0 for count in counts]
