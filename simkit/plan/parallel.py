"""The same function over many arguments: here, in joblib's processes, or on a Ray cluster through joblib."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar

from simkit.errors import InputError

Cluster = Literal["", "ray"]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Workers:
    """How many processes, and whose; the results are the same whatever is chosen."""

    count: int = 1
    cluster: Cluster = ""


ALONE = Workers()


def over(function: Callable[[T], R], arguments: Sequence[T], workers: Workers = ALONE) -> Iterator[R]:
    """`function` of each argument, in their order, as soon as known; raises InputError if Ray is not installed."""
    if len(arguments) < 2 or (workers.count == 1 and not workers.cluster):
        yield from map(function, arguments)
        return
    from joblib import Parallel, delayed

    with _backend(workers.cluster):
        if workers.cluster:
            # Ray's backend gives no results before all are there
            yield from Parallel(n_jobs=workers.count)(delayed(function)(argument) for argument in arguments)
            return
        run = Parallel(n_jobs=workers.count, return_as="generator")
        yield from run(delayed(function)(argument) for argument in arguments)


def _backend(cluster: Cluster) -> AbstractContextManager[object]:
    if not cluster:
        return nullcontext()
    try:
        from ray.util.joblib import register_ray
    except ImportError:
        raise InputError("--cluster ray: Ray is not installed; pip install 'simkit-serving[cluster]'") from None
    from joblib import parallel_config

    register_ray()
    warnings.filterwarnings("ignore", message=".*Ray.*", category=FutureWarning)
    context: AbstractContextManager[object] = parallel_config(backend="ray")
    return context
