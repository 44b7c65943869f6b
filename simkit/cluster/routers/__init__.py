"""Routers by name. Adding one is a file here and a line below."""

from collections.abc import Callable

import numpy as np

from simkit.cluster.routers.least_outstanding import LeastOutstanding
from simkit.cluster.routers.power_of_two import PowerOfTwo
from simkit.cluster.routers.random_split import RandomSplit
from simkit.cluster.routers.round_robin import RoundRobin
from simkit.cluster.routers.router import BlindRouter, Router, View
from simkit.errors import InputError, suggestion

__all__ = ["ROUTERS", "BlindRouter", "Router", "View", "new_router"]

ROUTERS: dict[str, Callable[[np.random.Generator], Router | BlindRouter]] = {
    "round_robin": RoundRobin,
    "random": RandomSplit,
    "least_outstanding": LeastOutstanding,
    "power_of_two": PowerOfTwo,
}


def new_router(name: str, rng: np.random.Generator) -> Router | BlindRouter:
    """A router that has seen nothing, with its own random stream; InputError for a name that is not known."""
    if name not in ROUTERS:
        raise InputError(f"router={name!r}: is not known; {suggestion(name, ROUTERS)}")
    return ROUTERS[name](rng)
