"""One step at a time, for clocks that live outside the loop: a paced endpoint, a testbed that runs real kernels.

    row = plan(replica, now_ns)
    ... run the batch: replica.entries[row, :replica.batches[row].length] ...
    complete(replica, row, host_ns, device_ns)

and for requests that are not known beforehand, `submit`. With asynchronous scheduling, in the order of the loop's turn:

    row = plan(replica, now_ns)
    begin(replica, row, host_ns, device_ns)
    ... an empty batch, or as many begun as `pipeline_depth`: ...
    finish(replica)  # the oldest begun

A pipeline's stages are passed one after the other.
"""

from simkit.by_address import by_address
from simkit.compiled import compiled, inlined
from simkit.engine.actions import open_batch, seal_batch
from simkit.engine.clock import device_ns, round_ns
from simkit.engine.commit import cancel, commit
from simkit.engine.loop import dispatch, receive
from simkit.engine.ring import ring_row
from simkit.engine.state import DEVICE_FREE, FLUSH, IN_FLIGHT, NEVER, NOW, OLDEST, ROWS, Replica
from simkit.engine.vllm_v1 import schedule
from simkit.errors import InputError
from simkit.models.steptables import StepTables


def submit(
    r: Replica, arrival_ns: int, prompt: int, output: int, max_tokens: int | None = None, priority: int = 0
) -> int:
    """Add a request that arrives at `arrival_ns`, not before those already there; returns its row.

    The replica's arrays are as long as the most requests it can be given: InputError beyond.
    """
    row = int(r.at[ROWS])
    if row == len(r.requests):
        raise InputError(f"request {row + 1}: this replica was made for {row} requests; make it larger")
    asked = output if max_tokens is None else max_tokens
    r.requests[row] = (arrival_ns, prompt, output, asked, priority, asked, 0, NEVER, 0, 0)
    r.at[ROWS] = row + 1
    return row


@compiled
def plan(r: Replica, now_ns: int) -> int:
    """Take what has arrived by now and plan the next step; returns its row in `entries` and `batches`."""
    here = by_address(r)
    here.at[NOW] = now_ns
    here.at[FLUSH] = 0
    receive(here)
    row = open_batch(here)
    schedule(here, row)
    seal_batch(here, row)
    return row


@compiled
def expected_ns(r: Replica, tables: StepTables, row: int) -> tuple[int, int]:
    """(host, device) time that the tables give a planned step."""
    return round_ns(tables.host_ns[r.batches[row].length]), device_ns(by_address(r), by_address(tables), row)[0]


@compiled
def complete(r: Replica, row: int, host_ns: int, device_ns: int) -> None:
    """Book a planned step that took `host_ns`, then `device_ns`, and deliver its tokens."""
    here = by_address(r)
    _begin(here, row, host_ns, device_ns)
    _finish(here)


@compiled
def begin(r: Replica, row: int, host_ns: int, device_ns: int) -> None:
    """Book a planned step as begun: it takes `host_ns`, then, when the step before is done, `device_ns`."""
    _begin(by_address(r), row, host_ns, device_ns)


@compiled
def finish(r: Replica) -> None:
    """Deliver the tokens of the oldest step begun, at its end."""
    _finish(by_address(r))


@inlined
def _begin(r: Replica, row: int, host_ns: int, device_ns: int) -> None:
    start = max(r.at[NOW] + host_ns, r.at[DEVICE_FREE])
    dispatch(r, row, start, start + device_ns, device_ns, device_ns)
    r.at[NOW] += host_ns


@inlined
def _finish(r: Replica) -> None:
    row = r.at[OLDEST]
    r.at[NOW] = max(r.at[NOW], r.batches[row].end)
    commit(r, row)
    r.at[OLDEST] = ring_row(r, 1)
    r.at[IN_FLIGHT] -= 1


@compiled
def give_up(r: Replica, request: int) -> None:
    """Cancel a request: its client is gone."""
    cancel(by_address(r), request)
