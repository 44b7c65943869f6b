"""The replica that has most of the prompt cached, unless the load is out of balance: SGLang's cache-aware policy.

Source: sgl-router, policy cache_aware: if the most loaded has over `balance_abs` requests more than the least loaded
and over `balance_rel` times as many, the shortest queue; else the best match if it covers `cache_threshold` of the
prompt; else the replica with the least in its tree. Defaults are those of its command line (0.3, 64, 1.5).

Here what matches nowhere goes to each in turn instead, as round robin sends it: trees count tokens that were sent at
any time, not what there is to do, and following the smallest costs time where prompts share nothing.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simkit.cluster.routers.least_outstanding import least, loads
from simkit.cluster.routers.prefix_index import PrefixIndex
from simkit.cluster.routers.round_robin import InTurn
from simkit.cluster.routers.router import View
from simkit.engine.state import I64

BLOCK_BITS = 24  # blocks of a prompt: 16.7 million


class PrefixAware(BaseModel):
    """Affinity while it is balanced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cache_threshold: float = Field(default=0.3, ge=0, le=1, description="share of the prompt that a match must cover")
    balance_abs: int = Field(default=64, ge=0, description="requests")
    balance_rel: float = Field(default=1.5, ge=1, allow_inf_nan=False)
    unmatched: Literal["in_turn", "smallest_tree"] = Field(
        default="in_turn", description="where a prompt goes whose match is too short; smallest_tree: as SGLang"
    )
    exact: bool = Field(default=False, description="look into the replicas' caches instead of at what was sent")

    def router(self, rng: np.random.Generator) -> "CacheAware":
        """A router that draws from `rng` on ties."""
        return CacheAware(self, rng)


class CacheAware:
    """Keeps an index of what it sent where."""

    def __init__(self, settings: PrefixAware, rng: np.random.Generator) -> None:
        self._settings = settings
        self._rng = rng
        self._index = PrefixIndex()
        self._in_turn = InTurn()

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request."""
        choice = self._choice(request, fleet)
        most = max(1, fleet.kv_tokens(choice) // fleet.content_tokens())
        self._index.sent(whole_content(request, fleet), fleet.number(choice), most)
        return choice

    def _choice(self, request: int, fleet: View) -> int:
        load = loads(fleet, "requests")
        draw = float(self._rng.random())
        settings = self._settings
        if max(load) - min(load) > settings.balance_abs and max(load) > settings.balance_rel * min(load):
            return least(load, draw)
        match = cached(request, fleet, self._index, settings.exact)
        best = max(match)
        if best > 0 and best >= settings.cache_threshold * fleet.prompt_tokens(request):
            # of those that match equally, the least loaded
            return _least_loaded([replica for replica, tokens in enumerate(match) if tokens == best], load, draw)
        if settings.unmatched == "in_turn":
            return self._in_turn.choose(request, fleet)
        size = [self._index.size(fleet.number(replica)) for replica in range(len(fleet))]
        # trees that are full are equally small: the load decides
        return _least_loaded([replica for replica in range(len(fleet)) if size[replica] == min(size)], load, draw)


def _least_loaded(replicas: list[int], load: list[int], draw: float) -> int:
    """Of some replicas the one with the smallest load; of several, the one that `draw` picks."""
    return replicas[least([load[replica] for replica in replicas], draw)]


def whole_content(request: int, fleet: View) -> I64:
    """Ids of a whole prompt: those that the workload names, and for the rest ids that nobody shares."""
    named = fleet.content(request)
    blocks = -(-fleet.prompt_tokens(request) // fleet.content_tokens())
    own = -((request << BLOCK_BITS) + 1 + np.arange(len(named), blocks, dtype=np.int64))
    return np.concatenate((named[:blocks], own))


def cached(request: int, fleet: View, index: PrefixIndex, exact: bool) -> list[int]:
    """Leading tokens of a request that each replica has cached: in fact, or as the index believes."""
    if exact:
        return [fleet.cached_tokens(replica, request) for replica in range(len(fleet))]
    numbers = [fleet.number(replica) for replica in range(len(fleet))]
    prompt, size = fleet.prompt_tokens(request), fleet.content_tokens()
    return [min(ids * size, prompt) for ids in index.matches(fleet.content(request), numbers)]
