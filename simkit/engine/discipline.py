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

from simkit.compiled import compiled, inlined
from simkit.engine import loop, stepping
from simkit.engine.policy import own_loop
from simkit.engine.policy_file import PolicyFile, entry_point_names, find_policy
from simkit.engine.state import I64, Replica
from simkit.errors import InputError, suggestion
from simkit.models.steptables import StepTables

Schedule = Callable[[Replica, int], None]
F = TypeVar("F", bound=Callable[..., object])

# name -> module of simkit.engine with `schedule`
DISCIPLINES = {
    "vllm-v1": "vllm_v1",
    "vllm-v0": "vllm_v0",
    "sglang": "sglang",
    "sarathi": "sarathi",
    "orca": "orca",
    "static": "static",
}


def minds_blocks(discipline: str, content_ids: I64) -> bool:
    """Whether it matters from the start which blocks requests hold (`new_replica`).

    It does where a workload names content, and for a user's discipline, which may look.
    """
    return len(content_ids) > 0 or discipline not in DISCIPLINES


@dataclass(frozen=True)
class Engine:
    """The loop of one discipline; the functions are those of `simkit.engine.loop` and `simkit.engine.stepping`."""

    name: str
    advance: Callable[[Replica, StepTables, int, int], int]
    iterate: Callable[[Replica, StepTables], None]
    plan: Callable[[Replica, int], int]


def engine(name: str = "vllm-v1") -> Engine:
    """The engine of a discipline: one of ours, `path/to/file.py`, `file.py:function`, or an entry point's name.

    InputError for a name that is not known, or a file that is no discipline.
    """
    if name not in DISCIPLINES:
        return _own_engine(name)
    if name == "vllm-v1":
        return Engine(name, loop.advance, loop.iterate, stepping.plan)
    return _bundled_engine(name)


@cache
def _bundled_engine(name: str) -> Engine:
    return bound_engine(name, import_module(f"simkit.engine.{DISCIPLINES[name]}").schedule)


def _own_engine(name: str) -> Engine:
    """The engine of a user's discipline."""
    policy = find_policy(name)
    if policy is None:
        known = [*DISCIPLINES, *entry_point_names()]
        raise InputError(
            f"deployment.engine.discipline={name!r}: unknown, and no path of a .py file; {suggestion(name, known)}"
        )
    return _engine_of_file(policy)


@cache
def _engine_of_file(policy: PolicyFile) -> Engine:
    # kept by the file's text, not its name: an edited file is another discipline
    found = own_loop(policy, bound_engine)
    return Engine(policy.name, found.advance, found.iterate, found.plan)


def bound_engine(name: str, schedule: Schedule) -> Engine:
    """The loop's entry points around another `schedule`; `name` must be its own, machine code is filed under it."""
    turn = inlined(around(loop.turn, name, schedule=schedule))
    return Engine(
        name=name,
        advance=compiled(around(loop.advance, name, turn=turn)),
        iterate=compiled(around(loop.iterate, name, turn=turn)),
        plan=compiled(around(stepping.plan, name, schedule=schedule)),
    )


def around(function: F, name: str, **names: object) -> F:
    """A copy of a compiled function's source in which the global `names` mean something else."""
    source = cast(FunctionType, getattr(function, "py_func", function))
    copy = FunctionType(source.__code__, {**source.__globals__, **names}, f"{source.__name__}_{name}")
    copy.__qualname__ = copy.__name__
    copy.__module__ = source.__module__
    copy.__annotations__ = source.__annotations__
    return cast(F, copy)
