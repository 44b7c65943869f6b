"""The fleet's loop for a discipline of a user's own, whose engine only offers single turns."""

from collections.abc import Callable

from simkit.cluster.loops.until_end import COUNT, END, ENDED, IDLE, MORE, NEXT, PAUSED
from simkit.engine.discipline import Engine
from simkit.engine.ring import rows_of
from simkit.engine.state import (
    FLUSH,
    I32,
    I64,
    IN_FLIGHT,
    NEVER,
    NEXT_ARRIVAL,
    NOW,
    OLDEST,
    ROWS,
    UNFINISHED,
    Replica,
)
from simkit.models.steptables import StepTables


def stepwise(own: Engine) -> Callable[[Replica, StepTables, int, int, int, I32, I64], int]:
    """`simkit.cluster.loops.until_end.run_until_end`, turn by turn in Python; it looks again after every turn."""

    def run_until_end(
        r: Replica, tables: StepTables, until_ns: int, turns: int, least_step_ns: int, ended: I32, out: I64
    ) -> int:
        at = r.at
        out[COUNT] = 0
        for _ in range(turns):
            if at[UNFINISHED] == 0 and at[IN_FLIGHT] == 0 and at[FLUSH] == 0:
                if at[NEXT_ARRIVAL] == at[ROWS]:
                    out[NEXT] = NEVER
                    return IDLE
                at[NOW] = max(at[NOW], r.requests["arrival_ns"][at[NEXT_ARRIVAL]])
            if at[NOW] >= until_ns:
                out[NEXT] = at[NOW] + 1
                return PAUSED
            own.iterate(r, tables)
            row = (int(at[OLDEST]) - 1) % rows_of(r.limits)
            end = int(r.batches["end"][row])
            batch = r.entries["request"][row, : int(r.batches["length"][row])]
            over = batch[r.ledger["finish"][batch] == end] if end > out[END] else batch[:0]
            if len(over):
                ended[: len(over)] = over
                out[COUNT], out[END], out[NEXT] = len(over), end, at[NOW] + 1
                return ENDED
        return MORE

    return run_until_end
