"""Random settings and workloads that bring out every rule: tiny memory, small budgets, shared prefixes, priorities.

For checking a discipline, ours or a user's: everything is drawn from a seed, so a failure can be had again.
"""

from dataclasses import dataclass, replace

import numpy as np

from simkit.engine.dialect import FIRST_MINOR, LAST_MINOR, dialect_of
from simkit.engine.draft_kinds import METHODS, drafting
from simkit.engine.replica import new_replica
from simkit.engine.settings import in_flight_tokens, windowed
from simkit.engine.state import ABORT, FCFS, I64, NEVER, REQUEST, Limits, Records, Replica, records
from simkit.models.kv_groups import STATE_REACH, KvGroups
from simkit.models.steptables import StepTables, constant_tables

_EVENT_CAPACITY = 256  # the log of events is bounded and nothing here reads it


@dataclass(frozen=True)
class History:
    """A scenario; `replica()` makes a fresh one each time."""

    limits: Limits
    requests: Records
    content_ids: I64
    aborts: Records
    num_blocks: int
    tables: StepTables

    def replica(self) -> Replica:
        """A replica that has all of this before it."""
        return new_replica(
            self.limits, self.requests, self.content_ids, self.aborts, self.num_blocks, event_capacity=_EVENT_CAPACITY
        )


def random_history(seed: int, caching: bool | None = None) -> History:
    """A scenario of up to 40 requests, all of its choices drawn from `seed`."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([1, 2, 4, 8, 16]))
    longest = int(rng.integers(8, 120))
    needed = -(-longest // size)
    num_blocks = 1 + needed + int(rng.choice([0, 1, needed, 4 * needed, 40 * needed]))
    with_cache = bool(rng.random() < 0.5) if caching is None else caching
    chunked = bool(rng.random() < 0.85)
    budget = int(rng.integers(1, 40)) if chunked else longest + int(rng.integers(0, 50))
    running = int(rng.integers(1, 12))
    limits = Limits(
        max_num_batched_tokens=budget,
        max_running=running,
        max_model_len=longest,
        block_size=size,
        long_prefill_token_threshold=int(rng.choice([0, 0, 3, 7])),
        adaptive_long_prefill=bool(rng.random() < 0.2),
        lone_request_uncapped=bool(rng.random() < 0.5),
        chunked_prefill=chunked,
        prefix_caching=with_cache,
        ordering=int(rng.choice([0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6])),
        preemptive=bool(rng.random() < 0.3),
        watermark_blocks=int(rng.choice([0, 0, 1, 3])),
        reserve_full_isl=bool(rng.random() < 0.7),
        uncached_free_to_front=bool(rng.random() < 0.7),
        content_span=1,
        pipeline_depth=int(rng.choice([1, 2])),
    )
    requests, content_ids = _requests(rng, limits, int(rng.integers(1, 40)))
    tables = constant_tables(budget, running, token_ns=10.0, request_ns=7.0, step_ns=100.0)
    tables = tables._replace(
        host_ns=np.arange(running + 1, dtype=np.float64) * 3.0 + float(rng.choice([0.0, 50.0, 500.0]))
    )
    return History(limits, requests, content_ids, _aborts(rng, requests), num_blocks, tables)


def windowed_history(seed: int, caching: bool | None = None, whole: bool = False) -> History:
    """The same, of a model of whose layers some see windows, or all; memory for a request of any length at least.

    `whole`: for its whole context in every group of layers, as a user's discipline has it.
    """
    plain = random_history(seed, caching)
    rng = np.random.default_rng([seed, 2])
    size, longest = plain.limits.block_size, plain.limits.max_model_len
    chunked = bool(rng.random() < 0.2)
    window = int(rng.integers(2, longest + 4))
    groups = KvGroups(
        full=int(rng.choice([0, 1, 1, 1, 2])),
        window=int(rng.integers(1, 4)),
        windows_first=bool(rng.random() < 0.7),
        window_tokens=-(-window // size) * size if chunked else window,
        chunked=chunked,
    )
    dialect = dialect_of(f"vllm-0.{int(rng.integers(20, LAST_MINOR + 1))}")
    kept = int(rng.choice([0, 0, 2, 3])) * size if dialect.thins_windows and rng.random() < 0.7 else None
    limits = windowed(plain.limits, groups, dialect, kept)
    in_flight = in_flight_tokens(dialect, limits.max_num_batched_tokens, limits.pipeline_depth)
    in_flight = longest if whole else in_flight
    needed = groups.blocks_of(longest, size, in_flight)
    num_blocks = 1 + needed + int(rng.choice([0, 1, needed, 4 * needed, 40 * needed]))
    return replace(plain, limits=limits, num_blocks=num_blocks)


def stateful_history(seed: int) -> History:
    """The same, of a model some of whose layers keep a state; memory for a request of any length at least.

    Where prefixes are cached, by the rules of a vLLM version that caches states with them, some told inside a chunk.
    """
    rng = np.random.default_rng([seed, 4])
    kept = bool(rng.random() < 0.6)
    plain = random_history(seed, caching=kept)
    size, longest = plain.limits.block_size, plain.limits.max_model_len
    full, states = int(rng.choice([1, 1, 1, 2])), int(rng.integers(1, 6))
    threshold = plain.limits.long_prefill_token_threshold or size
    # 0.26 wants room for a block in every chunk
    first = 26 if size <= min(plain.limits.max_num_batched_tokens, threshold) else 27
    dialect = dialect_of(f"vllm-0.{int(rng.integers(first, LAST_MINOR + 1))}")
    if kept:
        plain = replace(plain, limits=plain.limits._replace(chunked_prefill=True))
    groups = KvGroups(full, state=states)
    if kept:
        told = bool(dialect.checkpointing) and bool(rng.random() < 0.6)
        groups = KvGroups(full, states, bool(rng.random() < 0.7), STATE_REACH, kept_states=True, checkpoints=told)
    every = int(rng.choice([0, 0, 2, 3])) * size if dialect.thins_windows and rng.random() < 0.7 else None
    needed = groups.blocks_of(longest, size, 0)
    num_blocks = 1 + needed + int(rng.choice([0, 1, states, needed, 4 * needed, 40 * needed]))
    return replace(plain, limits=windowed(plain.limits, groups, dialect, every), num_blocks=num_blocks)


def drafted_history(seed: int, caching: bool | None = None) -> History:
    """The same, of some kind of draft by the rules of some vLLM version."""
    rng = np.random.default_rng([seed, 3])
    plain = windowed_history(seed, caching, whole=True) if rng.random() < 0.4 else random_history(seed, caching)
    dialect = dialect_of(f"vllm-0.{int(rng.integers(FIRST_MINOR, LAST_MINOR + 1))}")
    method = METHODS[int(rng.integers(0, len(METHODS)))]
    limits = plain.limits._replace(
        pipeline_depth=1 if method == "ngram" else plain.limits.pipeline_depth,
        speculative_tokens=int(rng.integers(1, 6)),
        acceptance=float(rng.choice([0.0, 0.3, 0.6, 0.9, 1.0])),
        acceptance_seed=seed,
        registers_accepted=dialect.registers_accepted,
        draft_padding=dialect.draft_padding,
    )
    limits = drafting(limits, method, dialect, limits.max_running)
    budget = limits.max_num_batched_tokens + limits.draft_reserve + limits.draft_slots
    limits = limits._replace(max_num_batched_tokens=budget)
    tables = constant_tables(budget, limits.max_running, token_ns=10.0, request_ns=7.0, step_ns=100.0)
    return replace(plain, limits=limits, tables=tables)


def crowded_history(seed: int, requests: int = 400) -> History:
    """A long overload, first come first served and with ample memory: who is passed over here, is starved.

    Requests of 2 to 30 tokens, every twentieth of 60 to 110, arrive half as fast again as they can be served.
    """
    rng = np.random.default_rng([seed, 1])
    limits = random_history(seed).limits._replace(
        max_num_batched_tokens=32,
        max_running=8,
        max_model_len=128,
        chunked_prefill=True,
        ordering=FCFS,
        prefix_caching=False,
        preemptive=False,
        watermark_blocks=0,
    )
    rows = records(requests, REQUEST)
    rows["arrival_ns"] = np.cumsum(rng.exponential(140.0, requests)).astype(np.int64)
    long = rng.random(requests) < 0.05
    rows["prompt"] = np.where(long, rng.integers(60, 110, requests), rng.integers(1, 20, requests))
    rows["output"] = rng.integers(1, 10, requests)
    rows["max_tokens"] = rows["output"]
    rows["predicted"] = rows["output"]
    rows["deadline_ns"] = NEVER
    tables = constant_tables(32, 8, token_ns=10.0, step_ns=100.0)
    num_blocks = 1 + 8 * -(-limits.max_model_len // limits.block_size)
    return History(limits, rows, np.zeros(0, dtype=np.int64), records(0, ABORT), num_blocks, tables)


def _requests(rng: np.random.Generator, limits: Limits, n: int) -> tuple[Records, I64]:
    requests = records(n, REQUEST)
    arrivals = np.cumsum(rng.exponential(float(rng.choice([1.0, 300.0, 3000.0])), n)).astype(np.int64)
    content_ids: list[int] = []
    for i in range(n):
        prompt = int(rng.integers(1, limits.max_model_len))
        asked = int(rng.integers(1, limits.max_model_len - prompt + 1))
        output = asked if rng.random() < 0.6 else int(rng.integers(1, asked + 1))
        # one of three documents, shared up to some block and the request's own from there
        document, blocks = int(rng.integers(0, 3)), prompt // limits.block_size
        shared = int(rng.integers(0, blocks + 1))
        ids = [document * 1000 + k if k < shared else 10_000 + i * 1000 + k for k in range(blocks)]
        believed, tenant, deadline = int(rng.integers(1, 60)), int(rng.integers(0, 3)), int(rng.integers(0, 10**6))
        asks = (arrivals[i], prompt, output, asked, int(rng.integers(0, 3)), believed, tenant, deadline)
        requests[i] = (*asks, len(content_ids), len(ids))
        content_ids += ids
    return requests, np.array(content_ids, dtype=np.int64)


def _aborts(rng: np.random.Generator, requests: Records) -> Records:
    gone = np.flatnonzero(rng.random(len(requests)) < 0.1)
    aborts = records(len(gone), ABORT)
    aborts["request"] = gone
    aborts["time_ns"] = requests["arrival_ns"][gone] + rng.integers(1, 20_000, len(gone))
    aborts[:] = aborts[np.argsort(aborts["time_ns"], kind="stable")]
    assert not len(aborts) or int(aborts["time_ns"].max()) < NEVER
    return aborts
