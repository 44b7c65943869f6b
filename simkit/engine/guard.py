"""What is checked of a user's discipline at every step of every run, compiled along with it.

The full set of rules takes 0.3 ms a step in Python (simkit.engine.checks, which `simkit selftest` runs); these few take
nanoseconds, and stop a discipline before it brings out figures that no server can have.
"""

from collections.abc import Callable

from simkit.compiled import inlined
from simkit.engine.state import RUNNING, RUNNING_COUNT, Replica

Schedule = Callable[[Replica, int], None]


def guarded(schedule: Schedule) -> Schedule:
    """`schedule`, followed by a look at the batch it made; raises ValueError with the name of the rule it breaks."""

    def guarded_schedule(r: Replica, row: int) -> None:
        schedule(r, row)
        check_batch(r, row)

    return inlined(guarded_schedule)


@inlined
def check_batch(r: Replica, row: int) -> None:
    """Raise ValueError unless the batch keeps the budget, once a request, to those that run and are due so much."""
    length = r.batches[row].length
    if length > r.limits.max_running:
        raise ValueError("at most max_running: more requests in a batch")
    tokens = 0
    place = 0
    for k in range(length):
        entry = r.entries[row, k]
        tokens += int(entry.tokens)
        progress = r.progress[entry.request]
        if progress.status != RUNNING:
            raise ValueError("given what is due: a request was given tokens without being admitted")
        due = progress.known + progress.placeholders - progress.computed
        if entry.before != progress.computed or entry.tokens < 1 or entry.tokens > due:
            raise ValueError("given what is due: a request was given more than it is due, or less than 1, or elsewhere")
        if entry.before + entry.tokens > progress.held * r.limits.block_size:
            raise ValueError("memory for its tokens: a request was given tokens it has no blocks for; grow() first")
        # a walk along `running` meets everyone, once: the batch is in its order and names nobody twice
        while place < r.at[RUNNING_COUNT] and r.running[place] != entry.request:
            place += 1
        if place == r.at[RUNNING_COUNT]:
            raise ValueError("batch in order: a request is in the batch twice, or before one that began to run earlier")
        place += 1
    if tokens > r.limits.max_num_batched_tokens:
        raise ValueError("budget kept: a step gives more than max_num_batched_tokens")
