"""Routers by name. Adding one is a file here and a line below."""

from collections.abc import Mapping
from typing import Protocol, cast

import numpy as np
from pydantic import BaseModel, ValidationError

from simkit.cluster.plug_in import entry_point_names
from simkit.cluster.routers.by_length import ByLength
from simkit.cluster.routers.consistent_hash import ConsistentHash, Sticky
from simkit.cluster.routers.data_parallel import DataParallel
from simkit.cluster.routers.kv_overlap import KvOverlap
from simkit.cluster.routers.least_outstanding import LeastOutstanding, LeastTokens
from simkit.cluster.routers.own import ENTRY_POINTS, own_router
from simkit.cluster.routers.power_of_two import PowerOfTwo
from simkit.cluster.routers.prefix_aware import PrefixAware
from simkit.cluster.routers.random_split import RandomSplit
from simkit.cluster.routers.reported import LeastReported
from simkit.cluster.routers.round_robin import RoundRobin
from simkit.cluster.routers.router import BlindRouter, Router, Rule, View
from simkit.cluster.routers.weighted import Weighted
from simkit.errors import InputError, suggestion
from simkit.invalid import first_error

__all__ = ["ROUTERS", "BlindRouter", "Router", "Rule", "View", "new_router"]


class Settings(Protocol):
    """A router's settings, which make the router."""

    def router(self, rng: np.random.Generator) -> Router | BlindRouter: ...


ROUTERS: dict[str, type[BaseModel]] = {
    "round_robin": RoundRobin,
    "random": RandomSplit,
    "least_outstanding": LeastOutstanding,
    "least_tokens": LeastTokens,
    "power_of_two": PowerOfTwo,
    "least_reported": LeastReported,
    "consistent_hash": ConsistentHash,
    "sticky": Sticky,
    "prefix_aware": PrefixAware,
    "kv_overlap": KvOverlap,
    "weighted": Weighted,
    "data_parallel": DataParallel,
    "by_length": ByLength,
}


def new_router(given: str | Mapping[str, object], rng: np.random.Generator) -> Router | BlindRouter:
    """A router that has seen nothing, with its own random stream.

    `given` is a name, a path of a .py file, an entry point's name, or {"kind": name, setting: value, ..}. InputError
    for one that is not known.
    """
    settings = {"kind": given} if isinstance(given, str) else dict(given)
    name = settings.pop("kind", None)
    if not isinstance(name, str):
        raise InputError("cluster.router: is no mapping with a 'kind'; add one")
    if name in ROUTERS:
        kind = ROUTERS[name]
        try:
            return cast(Settings, kind.model_validate(settings)).router(rng)
        except ValidationError as error:
            raise InputError(first_error(error, f"cluster.router ({name})", kind.model_fields)) from None
    own = own_router(name, rng)
    if own is None:
        known = [*ROUTERS, *entry_point_names(ENTRY_POINTS)]
        raise InputError(f"router={name!r}: is not known, and no path of a .py file; {suggestion(name, known)}")
    if settings:
        raise InputError(f"cluster.router.{min(settings)}: a router of one's own has no settings here; leave it out")
    return own
