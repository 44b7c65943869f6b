"""A router of one's own: a class in a .py file, or an entry point of another distribution."""

import inspect

import numpy as np

from simkit.cluster.plug_in import OwnCode, find_own
from simkit.cluster.routers.router import BlindRouter, Router
from simkit.errors import InputError

ENTRY_POINTS = "simkit.routers"
NAME = "Router"  # of the class, unless `file.py:Other` names another


def own_router(name: str, rng: np.random.Generator) -> Router | BlindRouter | None:
    """The router that `path/to/file.py`, `file.py:Class` or an entry point's name stands for; None if it is neither.

    The class is called with a random generator, or with nothing if it takes nothing. Raises InputError, naming the
    file, if it is not there, cannot be run, or has no such class.
    """
    kind = find_own(name, ENTRY_POINTS, NAME)
    if kind is None:
        return None
    if not callable(kind):
        raise InputError(f"router={name!r}: is no class; name one with choose(request, fleet)")
    with OwnCode(f"router={name!r}"):
        takes = len(inspect.signature(kind).parameters) > 0
        made = kind(rng) if takes else kind()
    if not hasattr(made, "choose") and not hasattr(made, "shares"):
        raise InputError(f"router={name!r}: has neither choose(request, fleet) nor shares(workload, replicas)")
    return made  # type: ignore[no-any-return]
