"""Engines of one replica that share experts: each a station with jobs of its own, run together, step by step."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from simkit.cluster.loops.lockstep import run_together
from simkit.cluster.loops.until_end import COUNT, END, ENDED, NEXT
from simkit.cluster.offers import least_step_ns
from simkit.cluster.pace import Pace, Ran
from simkit.cluster.station import Station
from simkit.compiled import Calls
from simkit.engine.deployment import ReplicaSpec
from simkit.engine.state import NEVER, Pool, Recorder, Replica
from simkit.errors import InputError
from simkit.models.steptables import StepTables

COMMON = ("limits", "content_ids")  # of a Replica's fields: what equal engines have once
ROWS_OF_ARRAYS = tuple(name for name in Replica._fields if name not in (*COMMON, "pool", "record"))
FIRST_ABORTS = 8  # room for cancellations

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def check_lockstep(spec: ReplicaSpec) -> None:
    """Raise InputError for engines that are to share experts and cannot run together."""
    discipline = spec.deployment.engine.discipline
    if spec.deployment.layout.data > 1 and discipline != "vllm-v1":
        raise InputError(
            f"deployment.engine.discipline={discipline}: engines that share experts (layout.data) run vllm-v1 only"
        )


def least_common_ns(tables: StepTables) -> int:
    """The shortest step, ns, in which an engine computes a token: experts may have fewer tokens to compute than it."""
    if len(tables.shared_linear_ns) == 0:
        return least_step_ns(tables)
    own_ns = float((tables.linear_ns - tables.shared_linear_ns)[1:].min())
    experts_ns = float(tables.shared_linear_ns[1:].min())
    return max(0, int(own_ns + experts_ns) - 2)  # each of three parts is rounded


class Lockstep:
    """`simkit.cluster.station.Together`: the arrays of d engines as one, a row each, and one pace for all."""

    def __init__(self, stations: Sequence[Station]) -> None:
        """`stations` [d] are equal and have not begun; from here on they take all their steps together."""
        tables, count = stations[0].spec.tables, len(stations)
        self._stations = stations
        self._tables = tables
        self._slow = np.ones(count, dtype=np.float64)
        self._least_ns = np.full(count, least_common_ns(tables), dtype=np.int64)
        pace = Pace(stations[0].clock, stations, self._run)
        alone = [station.join(self, i, pace) for i, station in enumerate(stations)]
        self._calls = Calls()
        self._engines = side_by_side(alone[0], count)
        self._steps = np.zeros(1, dtype=np.int64)
        self._planned = np.zeros((count, 3), dtype=np.int64)
        self._ended = np.zeros((count, self._engines.limits.max_running), dtype=np.int32)
        self._out = np.zeros((count, 3), dtype=np.int64)
        self._show()

    def enlarge(self) -> None:
        """As Together."""
        names = ("requests", "progress", "ledger", "waiting")
        room = 2 * self._engines.requests.shape[1]
        longer = {name: _longer(getattr(self._engines, name), room) for name in names}
        self._engines = self._engines._replace(**longer)
        self._show()

    def lengthen_aborts(self) -> None:
        """As Together; those to come have no time yet."""
        known = self._engines.aborts.shape[1]
        longer = _longer(self._engines.aborts, max(FIRST_ABORTS, 2 * known))
        longer["time_ns"][:, known:] = NEVER
        self._engines = self._engines._replace(aborts=longer)
        self._show()

    def slow_down(self, place: int, factor: float) -> None:
        """As Together."""
        self._slow[place] = factor
        least_ns = least_common_ns(self._tables)
        self._least_ns[place] = least_ns if factor == 1.0 else max(0, int(factor * least_ns) - 1)

    def least_step_ns(self, place: int) -> int:
        """As Together."""
        return int(self._least_ns[place])

    def _run(self, until_ns: int, turns: int) -> Ran:
        """As simkit.cluster.pace.Pace has it."""
        out = self._out
        state = self._calls(
            run_together,
            self._engines,
            self._tables,
            self._slow,
            self._least_ns,
            until_ns,
            turns,
            self._steps,
            self._planned,
            self._ended,
            out,
        )
        if state == ENDED:
            for i in np.flatnonzero(out[:, COUNT]).tolist():
                self._stations[i].note_late(self._ended[i, : out[i, COUNT]].tolist())
        return Ran(state, int(out[0, END]), int(out[0, NEXT]))

    def _show(self) -> None:
        self._calls.forget()
        for i, station in enumerate(self._stations):
            station.see(row_of(self._engines, i))


def side_by_side(replica: Replica, count: int) -> Replica:
    """So many replicas like one that has not begun as one, whose arrays have one more axis in front."""
    parts = {name: _repeated(getattr(replica, name), count) for name in ROWS_OF_ARRAYS}
    # nobody has any block yet: what is in the table does not matter, and it is large
    table = np.empty((count, *replica.pool.table.shape), dtype=replica.pool.table.dtype)
    pool = Pool(*(_repeated(part, count) for part in replica.pool._replace(table=table[0, :0])))
    record = Recorder(*(_repeated(part, count) for part in replica.record))
    return replica._replace(**parts, pool=pool._replace(table=table), record=record)


def row_of(engines: Replica, i: int) -> Replica:
    """Engine i as a replica by itself: the same arrays."""
    parts = {name: getattr(engines, name)[i] for name in ROWS_OF_ARRAYS}
    pool = Pool(*(part[i] for part in engines.pool))
    return engines._replace(**parts, pool=pool, record=Recorder(*(part[i] for part in engines.record)))


def _repeated(rows: Array, count: int) -> Any:
    """[count, ..] the same, so many times; where all is zero, no memory is touched before it is used."""
    whole = np.zeros((count, *rows.shape), dtype=rows.dtype)
    if np.ascontiguousarray(rows).view(np.uint8).any():
        whole[:] = rows
    return whole.view(np.recarray) if whole.dtype.names else whole


def _longer(rows: Array, length: int) -> Any:
    """[d, length] the rows, and zeros after them."""
    wider = np.zeros((len(rows), length), dtype=rows.dtype)
    wider[:, : rows.shape[1]] = rows
    return wider.view(np.recarray) if wider.dtype.names else wider
