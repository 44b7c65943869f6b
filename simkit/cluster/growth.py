"""Room for more requests: a replica whose load is not known beforehand outgrows its arrays."""

import numpy as np

from simkit.engine.state import ABORT, NEVER, Records, Replica, records


def enlarged(replica: Replica, requests: int) -> Replica:
    """The same replica with room for `requests` requests, at least as many as now.

    Only the arrays with one row a request are new; all others are shared, so the old one must not be used again.
    """
    waiting = np.zeros(requests, dtype=np.int32)
    waiting[: len(replica.waiting)] = replica.waiting
    return replica._replace(
        requests=_longer(replica.requests, requests),
        progress=_longer(replica.progress, requests),
        ledger=_longer(replica.ledger, requests),
        waiting=waiting,
    )


def with_more_aborts(replica: Replica) -> Replica:
    """The same replica with room for twice as many cancellations; those to come have no time yet."""
    known = len(replica.aborts)
    longer = records(max(8, 2 * known), ABORT)
    longer["time_ns"] = NEVER
    longer[:known] = replica.aborts
    return replica._replace(aborts=longer)


def trimmed(replica: Replica, requests: int) -> Replica:
    """The same replica, seen as one made for its first `requests` requests."""
    return replica._replace(
        requests=replica.requests[:requests].view(np.recarray),
        progress=replica.progress[:requests].view(np.recarray),
        ledger=replica.ledger[:requests].view(np.recarray),
        waiting=replica.waiting[:requests],
    )


def _longer(rows: Records, length: int) -> Records:
    """The rows, and zeros below them."""
    wider = np.zeros(length, dtype=rows.dtype).view(np.recarray)
    wider[: len(rows)] = rows
    return wider
