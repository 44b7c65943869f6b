"""Replicas in several processes: forked, so that they see the workload without a copy, and write their columns into
memory that is shared, so that nothing large goes through a pipe."""

import mmap
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from multiprocessing.connection import Connection, wait

import numpy as np

from simkit.engine.state import I64
from simkit.metrics.result import RequestColumns, RunResult

CAN_FORK = "fork" in multiprocessing.get_all_start_methods()
NAMES = tuple(field.name for field in fields(RequestColumns) if field.name != "request_id")

Columns = dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"]


def in_processes(
    share: Callable[[int], RunResult], rows: Sequence[I64], processes: int
) -> Iterator[tuple[int, RunResult]]:
    """(i, share(i)) for each i of `rows`, as they are done, by processes that take every so-manieth."""
    ends = np.cumsum([len(mine) for mine in rows])
    slices = [slice(int(end) - len(mine), int(end)) for end, mine in zip(ends, rows, strict=True)]
    shared = {name: _shared(int(ends[-1])) for name in NAMES}
    context = multiprocessing.get_context("fork")
    workers, pipes = [], []
    for k in range(min(processes, len(rows))):
        receiver, sender = context.Pipe(duplex=False)
        numbers = list(range(k, len(rows), processes))
        worker = context.Process(target=_work, args=(share, numbers, slices, shared, sender), daemon=True)
        worker.start()
        sender.close()
        workers.append(worker)
        pipes.append(receiver)
    try:
        yield from _received(pipes, slices, shared)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _received(pipes: list[Connection], slices: Sequence[slice], shared: Columns) -> Iterator[tuple[int, RunResult]]:
    """What the workers send, with the columns that they left in shared memory."""
    while pipes:
        for pipe in wait(pipes):
            assert isinstance(pipe, Connection)
            try:
                i, result, dtypes, names = pipe.recv()
            except EOFError:
                pipes.remove(pipe)
                continue
            part = {name: shared[name][slices[i]].astype(dtypes[name], copy=False) for name in NAMES}
            yield i, replace(result, requests=RequestColumns(request_id=names, **part))


def _work(
    share: Callable[[int], RunResult],
    numbers: Sequence[int],
    slices: Sequence[slice],
    shared: Columns,
    sender: Connection,
) -> None:
    """In a worker: serve some replicas and tell of each."""
    for i in numbers:
        result = share(i)
        columns = result.requests
        dtypes = {}
        for name in NAMES:
            column = getattr(columns, name)
            shared[name][slices[i]] = column
            dtypes[name] = column.dtype
        empty = replace(columns, request_id=None, **{name: getattr(columns, name)[:0] for name in NAMES})
        sender.send((i, replace(result, requests=empty), dtypes, columns.request_id))
        if not result.complete:
            return


def _shared(length: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """Numbers in memory that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, max(1, length * 8)), dtype=np.int64, count=length)
