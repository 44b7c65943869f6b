"""What can be done to a workload before it is replayed; each step is recorded in `transforms`.

All functions return a new workload and leave their argument alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simkit.errors import InputError
from simkit.workloads.cells import MAX_TIME_US, Ragged
from simkit.workloads.streams import stream
from simkit.workloads.table import taken
from simkit.workloads.ticks import spread
from simkit.workloads.workload import I32, I64, ExtraColumn, Prefixes, Workload


def time_scale(workload: Workload, factor: float) -> Workload:
    """Arrival times multiplied by `factor` > 0: 0.5 doubles the rate."""
    if not 0 < factor < float("inf"):
        raise InputError(f"time scale {factor:g}: a finite factor above 0 is wanted")
    stretched = workload.arrival_us * float(factor)
    if len(workload) and not stretched.max() <= MAX_TIME_US:
        raise InputError(f"time scale {factor:g}: the workload would last more than a century")
    tick = max(1, round(workload.tick_us * factor)) if workload.tick_us > 1 else 1
    moved = replace(workload, arrival_us=np.rint(stretched).astype(np.int64), tick_us=tick)
    return _recorded(moved, f"time_scale({factor:.17g})")


def rate_to(workload: Workload, rate_per_s: float) -> Workload:
    """Arrivals stretched or squeezed so that (n - 1) / (last - first) is `rate_per_s`; the bursts' shape stays."""
    if not 0 < rate_per_s < float("inf"):
        raise InputError(f"rate {rate_per_s:g}: a finite rate above 0 requests/s is wanted")
    span_us = int(workload.arrival_us[-1] - workload.arrival_us[0]) if len(workload) else 0
    if span_us == 0:
        raise InputError(
            f"rate {rate_per_s:g}: all requests of {workload.name!r} arrive at once; there is no rate to scale"
        )
    return time_scale(workload, (len(workload) - 1) * 1e6 / rate_per_s / span_us)


def thin(workload: Workload, share: float, seed: int = 0) -> Workload:
    """Each request kept with probability `share`, 0 < share <= 1, independently: a Poisson stream stays Poisson."""
    if not 0 < share <= 1:
        raise InputError(f"share {share:g}: a share above 0 and at most 1 is wanted")
    keep = stream(seed).random(len(workload)) < share
    return _recorded(_not_empty(selected(workload, keep), "thinning"), f"thin({share:g}, seed={seed})")


def take(workload: Workload, requests: int) -> Workload:
    """The first `requests` requests."""
    if requests < 1:
        raise InputError(f"take {requests}: at least one request is wanted")
    return _recorded(selected(workload, np.arange(min(requests, len(workload)))), f"take({requests})")


def window(workload: Workload, start_s: float, end_s: float) -> Workload:
    """The requests that arrive from `start_s` up to before `end_s`, with times from `start_s` on."""
    if not 0 <= start_s < end_s:
        raise InputError(f"window {start_s:g} to {end_s:g} s: 0 <= start < end is wanted")
    inside = (workload.arrival_us >= start_s * 1e6) & (workload.arrival_us < end_s * 1e6)
    part = _not_empty(selected(workload, inside), f"the window {start_s:g} to {end_s:g} s")
    part = replace(part, arrival_us=part.arrival_us - int(np.ceil(start_s * 1e6)))
    return _recorded(part, f"window({start_s:g}, {end_s:g})")


LEAD_IN = 0.01  # of a trace's span: a longer wait for the first request would show in every rate over the run


def without_lead_in(workload: Workload) -> Workload:
    """Times from the first request on, where a trace counts them from long before: since 1970, or since some midnight.

    Rates, shares of time and means over time are over a run from time 0 on, of which nobody wants decades before the
    first request. A lead-in of at most `LEAD_IN` of the trace stays.
    """
    if not len(workload):
        return workload
    first, last = int(workload.arrival_us[0]), int(workload.arrival_us[-1])
    if first <= LEAD_IN * (last - first):
        return workload
    note = f"the first request came at {first / 1e6:.12g} s; times count from it"
    moved = replace(workload, arrival_us=workload.arrival_us - first, notes=(*workload.notes, note))
    return _recorded(moved, f"without_lead_in({first / 1e6:.12g} s)")


def fit_context(workload: Workload, max_model_len: int, mode: Literal["drop", "clip"] = "drop") -> Workload:
    """No request longer than `max_model_len` tokens, prompt and answer together.

    "drop" leaves longer ones out; "clip" cuts their answer to what fits, and leaves out only those whose prompt fills
    the context. Left out ones are counted in `dropped_rows`, cut ones in the record of the transform.
    """
    if max_model_len < 2:
        raise InputError(f"max_model_len {max_model_len}: at least 2 tokens are wanted, one each way")
    prompt = workload.prompt_tokens.astype(np.int64)
    room = max_model_len - prompt
    keep = room >= 1 if mode == "clip" else room >= workload.output_tokens
    cut = keep & (room < workload.output_tokens)
    answers = np.where(cut, room, workload.output_tokens).astype(np.int32)
    fitting = replace(workload, output_tokens=answers)
    if not keep.all():
        fitting = _not_empty(selected(fitting, keep), f"max_model_len {max_model_len}")
        counts = dict(fitting.dropped_rows)
        counts["over_max_model_len"] = counts.get("over_max_model_len", 0) + int((~keep).sum())
        fitting = replace(fitting, dropped_rows=counts)
    record = f"fit_context({max_model_len}, {mode}: {int((~keep).sum())} left out, {int(cut.sum())} answers cut)"
    return _recorded(fitting, record)


def spread_ticks(workload: Workload, seed: int = 0) -> Workload:
    """Arrivals that were rounded to coarse ticks moved uniformly within their tick; those without ticks stay."""
    if workload.tick_us <= 1:
        return replace(workload, notes=(*workload.notes, "arrivals show no ticks: there is nothing to spread"))
    moved = spread(workload.arrival_us, workload.tick_us, stream(seed))
    notes = tuple(note for note in workload.notes if "--spread-ticks" not in note)
    record = f"spread_ticks({workload.tick_us}us, seed={seed})"
    return _recorded(replace(workload, arrival_us=moved, tick_us=1, notes=notes), record)


def superpose(workloads: Sequence[Workload], name: str = "") -> Workload:
    """All requests of several workloads, each keeping its times: independent streams on one system.

    Nothing is shared across them: block ids are kept apart, and request and session ids are prefixed with the
    workload's number.
    """
    if not workloads:
        raise InputError("superpose: at least one workload is wanted")
    arrival = np.concatenate([w.arrival_us for w in workloads])
    order = np.argsort(arrival, kind="stable")
    together = Workload(
        name=name or "+".join(w.name for w in workloads),
        arrival_us=arrival,
        prompt_tokens=np.concatenate([w.prompt_tokens for w in workloads]),
        output_tokens=np.concatenate([w.output_tokens for w in workloads]),
        request_id=_numbered(workloads, [w.request_id or tuple(map(str, range(len(w)))) for w in workloads]),
        priority=_priorities(workloads),
        session_id=_sessions(workloads),
        prefixes=_prefixes_apart([w.prefixes for w in workloads], [len(w) for w in workloads]),
        tick_us=max(w.tick_us for w in workloads),
        source=" + ".join(w.source for w in workloads),
        dropped_rows=_summed([w.dropped_rows for w in workloads]),
        extra=_extras(workloads),
        notes=tuple(dict.fromkeys(note for w in workloads for note in w.notes)),
    )
    before = "".join(f"; {i}: {', '.join(w.transforms)}" for i, w in enumerate(workloads) if w.transforms)
    return _recorded(selected(together, order), f"superpose({len(workloads)}{before})")


def selected(workload: Workload, rows: NDArray[np.bool_] | I64) -> Workload:
    """The workload of some of its rows, by mask or by numbers in order of arrival; nothing is recorded."""
    chosen: I64 = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
    index = chosen.tolist()

    def picked(column: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if column is None else tuple(column[i] for i in index)

    return replace(
        workload,
        arrival_us=workload.arrival_us[rows],
        prompt_tokens=workload.prompt_tokens[rows],
        output_tokens=workload.output_tokens[rows],
        request_id=picked(workload.request_id),
        priority=None if workload.priority is None else workload.priority[rows],
        session_id=picked(workload.session_id),
        prefixes=None if workload.prefixes is None else _prefix_rows(workload.prefixes, chosen),
        extra={name: tuple(column[i] for i in index) for name, column in workload.extra.items()},
    )


def _prefix_rows(prefixes: Prefixes, rows: I64) -> Prefixes:
    ids = taken(Ragged(np.diff(prefixes.start), prefixes.ids), rows)
    assert isinstance(ids, Ragged)
    return replace(prefixes, start=np.concatenate(([0], np.cumsum(ids.length))), ids=ids.flat)


def _recorded(workload: Workload, what: str) -> Workload:
    return replace(workload, transforms=(*workload.transforms, what))


def _not_empty(workload: Workload, what: str) -> Workload:
    if len(workload) == 0:
        raise InputError(f"{workload.name}: {what} leaves no request")
    return workload


def _numbered(workloads: Sequence[Workload], columns: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(f"{i}:{name}" if name else "" for i, column in enumerate(columns) for name in column)


def _sessions(workloads: Sequence[Workload]) -> tuple[str, ...] | None:
    if all(w.session_id is None for w in workloads):
        return None
    return _numbered(workloads, [w.session_id or ("",) * len(w) for w in workloads])


def _priorities(workloads: Sequence[Workload]) -> I32 | None:
    if all(w.priority is None for w in workloads):
        return None
    columns = [w.priority if w.priority is not None else np.zeros(len(w), np.int32) for w in workloads]
    return np.concatenate(columns)


def _prefixes_apart(parts: Sequence[Prefixes | None], rows: Sequence[int]) -> Prefixes | None:
    known = [p for p in parts if p is not None]
    if not known:
        return None
    if len({p.block_tokens for p in known}) > 1:
        sizes = ", ".join(str(size) for size in sorted({p.block_tokens for p in known}))
        raise InputError(f"superpose: block ids stand for {sizes} tokens; workloads of one block size are wanted")
    lengths, ids, offset = [], [], 0
    for part, count in zip(parts, rows, strict=True):
        if part is None:
            lengths.append(np.zeros(count, np.int64))
            continue
        # dense numbers from 0 cannot overflow, whatever the ids were
        different, dense = np.unique(part.ids, return_inverse=True)
        lengths.append(np.diff(part.start))
        ids.append(dense.astype(np.int64) + offset)
        offset += len(different)
    start = np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
    partial = "ceil" if any(p.partial_block == "ceil" for p in known) else "floor"
    return Prefixes(known[0].block_tokens, start, np.concatenate(ids), partial)


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for count in counts for name in count)
    return {name: sum(count.get(name, 0) for count in counts) for name in names}


def _extras(workloads: Sequence[Workload]) -> dict[str, ExtraColumn]:
    together: dict[str, ExtraColumn] = {}
    for name in dict.fromkeys(name for w in workloads for name in w.extra):
        column = [value for w in workloads for value in w.extra.get(name, (None,) * len(w))]
        if name == "parent_id":  # it names a request, whose id gets the workload's number too
            owner = [i for i, w in enumerate(workloads) for _ in range(len(w))]
            column = [None if value is None else f"{i}:{value}" for i, value in zip(owner, column, strict=True)]
        together[name] = tuple(column)
    return together
