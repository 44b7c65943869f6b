"""The requests that inference-perf's shared-prefix client sends, as a workload.

What the client does (kubernetes-sigs/inference-perf, `shared_prefix_datagen.py`, `load_timer.py`, `load_generator.py`):
a fixed set of prompts, one a user, is made once and shuffled; each stage walks through them in turn from the first; a
stage of a "constant" rate sends exactly rate x duration requests with exponential gaps scaled to fill the duration; a
stage begins when the one before it has ended. So from its second round on a prompt has been seen before in full, and
with prefix caching only its last, unfilled block is computed again.
"""

from typing import NamedTuple

import numpy as np

from simkit.fidelity.measured_runs import SharedPrefixLoad
from simkit.workloads.prefix_groups import BLOCK_TOKENS
from simkit.workloads.streams import stream
from simkit.workloads.table import ranges
from simkit.workloads.workload import I32, I64, Prefixes, Workload

# between two stages: the client lets the last one end and starts a clock again; long enough that answers do not overlap
PAUSE_S = 30.0


class StagedWorkload(NamedTuple):
    """A workload, and to which stage each request belongs."""

    workload: Workload
    stage: I32  # [n] stage of each request, from 0


def shared_prefix_workload(load: SharedPrefixLoad, output_tokens: float, name: str, seed: int = 0) -> StagedWorkload:
    """The requests of all stages.

    Args:
        load: what the client was told.
        output_tokens: mean tokens generated; a request gets the whole number below or above, in even turn.
        name: what the workload is called.
        seed: of the gaps and of the order of the prompts.
    """
    rng = stream(seed)
    counts = load.stage_requests()
    order = rng.permutation(load.users)
    arrivals, users = [], []
    begin_s = 0.0
    for count, (_, seconds) in zip(counts, load.stages, strict=True):
        gaps = rng.exponential(1.0, count)
        arrivals.append(begin_s + np.cumsum(gaps) * (seconds / gaps.sum()))
        users.append(order[np.arange(count) % load.users])
        begin_s += seconds + PAUSE_S
    user = np.concatenate(users)
    n = len(user)
    return StagedWorkload(
        Workload(
            name=name,
            arrival_us=np.rint(np.concatenate(arrivals) * 1e6).astype(np.int64),
            prompt_tokens=np.full(n, load.prompt_tokens, dtype=np.int32),
            output_tokens=_even_turns(output_tokens, n),
            prefixes=_prefixes(load, user),
            source=f"inference-perf shared_prefix: {load.system_prompts} system prompts, {load.users} users",
        ),
        np.repeat(np.arange(len(counts), dtype=np.int32), counts),
    )


def _even_turns(mean: float, n: int) -> I32:
    """[n] whole numbers of this mean, floor and ceiling spread evenly."""
    ends = np.floor(np.arange(1, n + 1) * mean + 1e-9)
    return np.diff(ends, prepend=0.0).astype(np.int32)


def _prefixes(load: SharedPrefixLoad, user: I64) -> Prefixes | None:
    """Ids of the whole blocks of each prompt: those of the system prompt shared by its users, the others by one user.

    A block that holds the end of the system prompt and the start of a question belongs to the user.
    """
    shared = load.system_prompt_len // BLOCK_TOKENS
    own = load.prompt_tokens // BLOCK_TOKENS - shared
    if shared + own == 0:
        return None
    group = user // load.users_per_prompt
    first_own = load.system_prompts * shared + user * own
    # a request is two runs of consecutive ids
    firsts = np.column_stack([group * shared, first_own]).ravel()
    lengths = np.tile(np.array([shared, own], dtype=np.int64), len(user))
    start = np.arange(len(user) + 1, dtype=np.int64) * (shared + own)
    return Prefixes(BLOCK_TOKENS, start, ranges(firsts, lengths))
