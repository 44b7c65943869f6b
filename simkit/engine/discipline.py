"""Disciplines by name: each is a function `schedule(replica, row)` that fills one step, run by the same loop.

A compiled loop is tied to the discipline it calls, so each discipline gets its own copy of the loop's few entry points;
machine code is kept on disk under the discipline's name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import FunctionType
from typing import TypeVar, cast

from simkit.compiled import compiled
from simkit.engine import loop, stepping
from simkit.engine.state import Replica
from simkit.errors import InputError, suggestion
from simkit.models.steptables import StepTables

Schedule = Callable[[Replica, int], None]
F = TypeVar("F", bound=Callable[..., object])

# name -> module of simkit.engine with `schedule`
DISCIPLINES = {
    "vllm-v1": "vllm_v1",
}


@dataclass(frozen=True)
class Engine:
    """The loop of one discipline; the functions are those of `simkit.engine.loop` and `simkit.engine.stepping`."""

    name: str
    advance: Callable[[Replica, StepTables, int, int], int]
    iterate: Callable[[Replica, StepTables], None]
    plan: Callable[[Replica, int], int]


@cache
def engine(name: str = "vllm-v1") -> Engine:
    """The engine of a discipline; InputError for a name that is not known."""
    if name not in DISCIPLINES:
        raise InputError(f"deployment.engine.discipline={name!r}: unknown; {suggestion(name, DISCIPLINES)}")
    if name == "vllm-v1":
        return Engine(name, loop.advance, loop.iterate, stepping.plan)
    return bound_engine(name, import_module(f"simkit.engine.{DISCIPLINES[name]}").schedule)


def bound_engine(name: str, schedule: Schedule) -> Engine:
    """The loop's entry points around another `schedule`; `name` must be its own, machine code is filed under it."""
    iterate = _bound(loop.iterate, name, schedule=schedule)
    return Engine(
        name=name,
        advance=_bound(loop.advance, name, iterate=iterate),
        iterate=iterate,
        plan=_bound(stepping.plan, name, schedule=schedule),
    )


def _bound(function: F, name: str, **names: object) -> F:
    """A copy of a compiled function in whose source the global `names` mean something else."""
    source = cast(FunctionType, getattr(function, "py_func", function))
    copy = FunctionType(source.__code__, {**source.__globals__, **names}, f"{source.__name__}_{name}")
    copy.__qualname__ = copy.__name__
    copy.__module__ = source.__module__
    copy.__annotations__ = source.__annotations__
    return compiled(cast(F, copy))
