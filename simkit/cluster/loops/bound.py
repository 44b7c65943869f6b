"""The compiled loops of a fleet around each of our disciplines."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from simkit.cluster.loops import routed, until_end
from simkit.cluster.rack import Rack
from simkit.compiled import compiled, inlined
from simkit.engine import loop
from simkit.engine.discipline import DISCIPLINES, around
from simkit.engine.state import F64, I32, I64, Replica
from simkit.models.steptables import StepTables

RunUntilEnd = Callable[[Replica, StepTables, int, int, int, I32, I64], int]
Route = Callable[[Rack, int, int, int, int, int, I64, F64, I32], tuple[int, int]]


@dataclass(frozen=True)
class FleetLoops:
    """The functions of simkit.cluster.loops.until_end and .routed, for one discipline."""

    run_until_end: RunUntilEnd
    route: Route


@cache
def fleet_loops(discipline: str) -> FleetLoops:
    """The loops of one of the disciplines in `DISCIPLINES`."""
    if discipline == "vllm-v1":
        return FleetLoops(until_end.run_until_end, routed.route)
    schedule = import_module(f"simkit.engine.{DISCIPLINES[discipline]}").schedule
    turn = inlined(around(loop.turn, discipline, schedule=schedule))
    catch_up = inlined(around(routed.catch_up, discipline, turn=turn))
    route = around(routed.route, discipline, catch_up=catch_up)
    return FleetLoops(compiled(around(until_end.run_until_end, discipline, turn=turn)), compiled(route))
