"""A user's own discipline as an engine: compiled when numba can, interpreted when it cannot, guarded in both cases."""

import warnings
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, Protocol, TypeVar, cast

import numba
import numpy as np
from numba.core.errors import NumbaError

from simkit.engine.guard import guarded
from simkit.engine.interpreted import interpreted, uncompiled
from simkit.engine.policy_file import PolicyFile, Schedule, load_schedule, told
from simkit.engine.replica import new_replica
from simkit.engine.state import ABORT, NEVER, REQUEST, STEPS, Limits, Replica, records
from simkit.errors import InputError
from simkit.models.steptables import StepTables, constant_tables

P = ParamSpec("P")
T = TypeVar("T")

Advance = Callable[[Replica, StepTables, int, int], int]
Iterate = Callable[[Replica, StepTables], None]
Plan = Callable[[Replica, int], int]


class InterpretedWarning(UserWarning):
    """A discipline that numba cannot compile runs as plain Python, some hundred times slower."""


class Loop(Protocol):
    """The loop's entry points around a discipline, as simkit.engine.discipline makes them."""

    @property
    def advance(self) -> Advance: ...
    @property
    def iterate(self) -> Iterate: ...
    @property
    def plan(self) -> Plan: ...


class OwnLoop(NamedTuple):
    """The loop around a user's discipline; every call that fails says so in one line."""

    advance: Advance
    iterate: Iterate
    plan: Plan
    note: str  # why it is interpreted; empty when it is compiled


Bind = Callable[[str, Schedule], Loop]


def own_loop(policy: PolicyFile, bind: Bind) -> OwnLoop:
    """The loop around a user's discipline, bound by `simkit.engine.discipline.bound_engine`.

    Compiles it, or takes its machine code from the disk. Where numba cannot, it runs as plain Python and an
    InterpretedWarning says why. Raises InputError, naming file and line, if the file is no discipline.
    """
    loop, note = compiled_loop(policy, bind)
    if loop is None:
        loop = interpreted_loop(policy)
        warnings.warn_explicit(note, InterpretedWarning, str(policy.path), policy.line)
    return OwnLoop(_telling(policy, loop.advance), _telling(policy, loop.iterate), _telling(policy, loop.plan), note)


def compiled_loop(policy: PolicyFile, bind: Bind) -> tuple[Loop | None, str]:
    """The guarded discipline compiled into the loop; or None, and why numba cannot."""
    if numba.config.DISABLE_JIT:
        return None, "runs interpreted, because NUMBA_DISABLE_JIT is set"
    schedule = load_schedule(policy)
    loop = bind(policy.name, guarded(schedule))
    replica, tables = _nothing_to_do()
    try:
        loop.advance(replica, tables, NEVER, 0)
    except NumbaError as error:
        return None, f"runs interpreted, numba cannot compile it: {_reason(error)}"
    return loop, ""


def interpreted_loop(policy: PolicyFile, wrap: Callable[[Schedule], Schedule] | None = None) -> Loop:
    """The discipline in the uncompiled copy of the engine; `wrap` goes around it in place of the guard."""
    plain = interpreted()
    with uncompiled():
        schedule = load_schedule(policy)
        watched = plain.guard.guarded(schedule) if wrap is None else wrap(schedule)
        return cast(Loop, plain.discipline.bound_engine(policy.name, watched))


def _reason(error: NumbaError) -> str:
    """The lines of numba's long message that say what was wrong and where."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("During", "-", "Failed in", "File", "[", "<"))]
    places = [line for line in lines if line.startswith("File ")]
    return "; ".join([*telling[:2], *places[-1:]])[:300]


def _telling(policy: PolicyFile, function: Callable[P, T]) -> Callable[P, T]:
    """`function`, whose exceptions become one line that names the policy's file, its line and the step."""

    def call(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return function(*arguments, **named)
        except InputError:
            raise
        except Exception as error:
            step = int(cast(Replica, arguments[0]).at[STEPS]) + 1
            raise told(policy, error, f"step {step}: ") from error

    return call


def _nothing_to_do() -> tuple[Replica, StepTables]:
    """An idle replica: running the loop on it compiles the loop and does nothing else."""
    limits = Limits(
        max_num_batched_tokens=1,
        max_running=1,
        max_model_len=2,
        block_size=1,
    )
    nobody = new_replica(limits, records(0, REQUEST), np.zeros(0, np.int64), records(0, ABORT), 3, event_capacity=1)
    return nobody, constant_tables(1, 1)
