"""The traffic of one replica: its share of a workload at a rate, and other samples of the same traffic."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simkit.errors import InputError
from simkit.plan.sweep import mean_rate
from simkit.workloads.streams import stream
from simkit.workloads.transform import rate_to, selected
from simkit.workloads.workload import Prefixes, Workload

I64 = NDArray[np.int64]

LEAST_REQUESTS = 2000  # of one replica's share: 20 of them lie beyond its p99
MOST_REQUESTS = 20_000
LEAST_BLOCK = 50  # requests of a trace that are drawn together, or a twentieth of it: slow changes stay as they were


def replica_share(
    workload: Workload,
    replicas: int,
    rate_per_s: float,
    requests: int = LEAST_REQUESTS,
    most: int = MOST_REQUESTS,
) -> Workload:
    """What one of `replicas` replicas serves when they share `workload` at `rate_per_s` in all.

    Requests are dealt in turn, or sessions where the workload names them (a session stays where its KV cache is). By
    symmetry one replica's share tells the percentiles of all. A share shorter than `requests` goes on with the workload
    from its beginning, dealt to other replicas than before; one longer than `most` is cut.
    """
    at_rate = rate_to(workload, rate_per_s)
    dealt = _sessions_dealt(at_rate, replicas) if has_sessions(at_rate) else None
    rows, copies = (part[:most] for part in _rows(at_rate, replicas, requests, dealt))
    period_us = round(len(at_rate) * 1e6 / rate_per_s)
    part = selected(at_rate, rows)
    return replace(
        part,
        arrival_us=part.arrival_us + copies * period_us,
        request_id=None,
        session_id=None,
        prefixes=_apart(part.prefixes, copies),
        extra={},
    )


def has_sessions(workload: Workload) -> bool:
    """Whether the workload names its sessions."""
    return workload.session_id is not None and any(workload.session_id)


def _sessions_dealt(workload: Workload, replicas: int) -> I64:
    """[n] the replica of each request, sessions dealt in turn by their first request; those without one by request."""
    assert workload.session_id is not None, "asked for workloads with sessions only"
    number: dict[str, int] = {}
    place = np.zeros(len(workload), dtype=np.int64)
    for i, name in enumerate(workload.session_id):
        place[i] = number.setdefault(name or f"\0{i}", len(number)) % replicas
    return place


def _rows(workload: Workload, replicas: int, requests: int, dealt: I64 | None) -> tuple[I64, I64]:
    """(rows, which time round each is) of one replica's share."""
    rows: list[I64] = []
    copies: list[I64] = []
    found, copy = 0, 0
    while found < requests:
        # each time round the next replica's share is taken, so that lengths repeat only after all were used
        turn = copy % replicas
        mine = np.arange(turn, len(workload), replicas) if dealt is None else np.flatnonzero(dealt == turn)
        rows.append(mine.astype(np.int64))
        copies.append(np.full(len(mine), copy, dtype=np.int64))
        found += len(mine)
        copy += 1
        if copy >= replicas and not found:
            raise InputError(f"workload {workload.name}: holds no request; choose a longer one")
    return np.concatenate(rows), np.concatenate(copies)


def _apart(prefixes: Prefixes | None, copies: I64, common: I64 | None = None) -> Prefixes | None:
    """Prefixes with ids of their own for each copy ([n], from 0): a request served again is another user's.

    The ids in `common` stay what they are.
    """
    if prefixes is None or not copies.any():
        return prefixes
    known, dense = np.unique(prefixes.ids, return_inverse=True)
    owner = np.repeat(copies, np.diff(prefixes.start))
    if common is not None:
        owner = np.where(np.isin(known, common)[dense], 0, owner)
    return replace(prefixes, ids=dense.astype(np.int64) + owner * len(known))


def _ids_of_several(prefixes: Prefixes | None, number: I64, apart: int = 1) -> I64 | None:
    """Ids that requests have in common whose numbers ([n], from 0 and below n) are at least so far apart.

    With the numbers of their sessions, what several sessions share: tools, a system prompt.
    """
    if prefixes is None:
        return None
    known, dense = np.unique(prefixes.ids, return_inverse=True)
    of = np.repeat(number, np.diff(prefixes.start))
    first, last = np.full(len(known), len(number)), np.full(len(known), -1)
    np.minimum.at(first, dense, of)
    np.maximum.at(last, dense, of)
    common: I64 = known[last - first >= apart]
    return common


def resampled(workload: Workload, seed: int) -> Workload:
    """Another sample of the traffic that a trace is one of, at the same mean rate.

    A moving-block bootstrap (Kuensch 1989): blocks of a twentieth of the trace are drawn with replacement, each
    with its gaps, lengths and prefixes. Sessions, where the workload names them, are drawn whole, with the gaps within
    them; they begin at the times at which sessions of the trace do, and what would come after its end is cut.
    """
    rate = mean_rate(workload)
    if math.isnan(rate):
        raise InputError(f"workload {workload.name}: all requests arrive at once; there are no gaps to draw from")
    rng = stream(seed)
    drawn = _sessions_drawn(workload, rng) if has_sessions(workload) else _blocks_drawn(workload, rng)
    return rate_to(drawn, rate)


def _blocks_drawn(workload: Workload, rng: np.random.Generator) -> Workload:
    n = len(workload)
    size = max(1, min(max(LEAST_BLOCK, n // 20), n // 10))
    starts = rng.integers(0, n, -(-n // size))
    rows = ((starts[:, None] + np.arange(size)) % n).ravel()[:n]
    gaps = np.diff(workload.arrival_us)
    gaps = np.append(gaps, round(float(gaps.mean())))
    arrivals = np.concatenate(([0], np.cumsum(gaps[rows][:-1])))
    use = np.repeat(_layers(starts, size, n), size)[:n]
    part = selected(workload, rows)
    # who is drawn again is another user, with what users share: text that is asked for longer than a block lasts
    apart = _apart(part.prefixes, use, _ids_of_several(workload.prefixes, np.arange(n), size))
    return replace(part, arrival_us=arrivals.astype(np.int64), request_id=None, extra={}, prefixes=apart)


def _layers(starts: I64, size: int, n: int) -> I64:
    """[blocks] a number for each block of `size` rows from `starts` on, around n: none overlaps one of its own number.

    Each has the least that is free when it is drawn, so that no row stands twice under one number.
    """
    layers = np.zeros(len(starts), dtype=np.int64)
    for i, start in enumerate(starts.tolist()):
        behind = (starts[:i] - start) % n
        taken = set(layers[:i][np.minimum(behind, n - behind) < size].tolist())
        layers[i] = next(layer for layer in range(i + 1) if layer not in taken)
    return layers


def _sessions_drawn(workload: Workload, rng: np.random.Generator) -> Workload:
    """Who is drawn again begins where one who was not drawn did: twice at one time would be a load that never was."""
    assert workload.session_id is not None, "asked for workloads with sessions only"
    names = np.array([name or f"\0{i}" for i, name in enumerate(workload.session_id)])
    number = np.unique(names, return_inverse=True)[1]
    by_session = np.argsort(number, kind="stable")
    lengths = np.bincount(number)
    starts = np.cumsum(lengths) - lengths
    chosen = rng.integers(0, len(starts), len(starts))
    use = _earlier_uses(chosen)
    end_us = workload.arrival_us[-1]
    times_us = workload.arrival_us[by_session]
    begins_us, goes_on = times_us[starts], _may_go_on(times_us, starts, int(end_us))
    later_us = np.zeros(len(chosen), dtype=np.int64)
    again = np.flatnonzero(use)
    undrawn = np.setdiff1d(np.arange(len(starts)), chosen)
    new_us = _begins_again(begins_us[chosen[again]], goes_on[chosen[again]], begins_us[undrawn], rng)
    later_us[again] = new_us - begins_us[chosen[again]]
    rows = np.concatenate([by_session[starts[s] : starts[s] + lengths[s]] for s in chosen.tolist()])
    arrivals_us = workload.arrival_us[rows] + np.repeat(later_us, lengths[chosen])
    order = np.argsort(arrivals_us, kind="stable")
    order = order[arrivals_us[order] <= end_us]
    rows, uses = rows[order], np.repeat(use, lengths[chosen])[order]
    part = replace(selected(workload, rows), arrival_us=arrivals_us[order])
    assert part.session_id is not None, "selecting keeps the column"
    sessions = tuple(f"{name}#{u}" if name else "" for name, u in zip(part.session_id, uses.tolist(), strict=True))
    # copies share what sessions of the trace share, whichever of these were drawn
    prefixes = _apart(part.prefixes, uses, _ids_of_several(workload.prefixes, number))
    return replace(part, request_id=None, session_id=sessions, extra={}, prefixes=prefixes)


def _may_go_on(times_us: I64, starts: I64, end_us: int) -> NDArray[np.bool_]:
    """[sessions] whether one may go on when the trace ends: it has been silent for less than it was before.

    `times_us` are the arrivals of one session after the other, the first of each at `starts`.
    """
    gaps = np.diff(times_us, prepend=times_us[:1])
    gaps[starts] = 0
    last_us = times_us[np.append(starts[1:], len(times_us)) - 1]
    within: NDArray[np.bool_] = end_us - last_us < np.maximum.reduceat(gaps, starts)
    return within


def _begins_again(begins_us: I64, goes_on: NDArray[np.bool_], free_us: I64, rng: np.random.Generator) -> I64:
    """When sessions that are drawn again begin: each at one of `free_us`, as many as there are sessions.

    What one that goes on when the trace ends did next is not known, so it only begins later than it did, and is cut the
    more; where it began earlier, the rest of it would be missing from the day. Where no later begin is left it stays.
    """
    found = begins_us.copy()
    free = np.sort(free_us).tolist()
    pool: list[int] = []  # free begins that are no earlier than the session's
    bound = np.flatnonzero(goes_on)
    for i in bound[np.argsort(-begins_us[bound], kind="stable")].tolist():  # who has the least choice first
        while free and free[-1] >= begins_us[i]:
            pool.append(free.pop())
        if pool:
            found[i] = pool.pop(int(rng.integers(len(pool))))
    others = np.flatnonzero(~goes_on)
    found[others] = rng.permutation(np.array(free + pool, dtype=np.int64))[: len(others)]
    return found


def _earlier_uses(drawn: I64) -> I64:
    """[k] how often each was drawn before."""
    seen: dict[int, int] = {}
    uses = np.zeros(len(drawn), dtype=np.int64)
    for i, item in enumerate(drawn.tolist()):
        uses[i] = seen.get(item, 0)
        seen[item] = int(uses[i]) + 1
    return uses
