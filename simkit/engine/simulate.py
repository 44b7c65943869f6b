"""One replica serves a whole workload on the virtual clock: columns in, columns out."""

from collections.abc import Callable

import numpy as np

from simkit.engine.claims import deadlines_ns, tenant_numbers
from simkit.engine.discipline import engine, minds_blocks
from simkit.engine.loop import IDLE
from simkit.engine.predictor import Constant, PredictorSpec
from simkit.engine.record import (
    BLOCKS_INTEGRAL,
    BUSY_TIME,
    PREEMPTIONS,
    RUNNING_INTEGRAL,
    TOKENS,
    WAITING_INTEGRAL,
    bin_edges,
)
from simkit.engine.replica import new_replica
from simkit.engine.state import (
    ABORT,
    BUCKET,
    BUSY,
    COMPUTED_TOKENS,
    DEVICE_FREE,
    EVENTS,
    EVENTS_LOST,
    F64,
    FINISHED,
    FREE_BLOCKS,
    I32,
    I64,
    ITL_MAX,
    ITL_SUM,
    NEVER,
    NEXT_ARRIVAL,
    REDONE_TOKENS,
    REQUEST,
    STEPS,
    UNFINISHED,
    Limits,
    Records,
    Replica,
    records,
)
from simkit.metrics.result import Events, Histogram, RequestColumns, RunResult, Series, Status
from simkit.models.steptables import StepTables
from simkit.workloads.reblocked import reblocked
from simkit.workloads.workload import Prefixes, Workload

NOTHING_KNOWN = Constant()  # of output lengths
ITERATIONS_A_CALL = 1 << 17  # between looks at Ctrl-C and the progress bar: 10 to 200 ms


def simulate(
    workload: Workload,
    limits: Limits,
    tables: StepTables,
    num_blocks: int,
    on_progress: Callable[[int], None] | None = None,
    discipline: str = "vllm-v1",
    predictor: PredictorSpec = NOTHING_KNOWN,
    max_tokens: int | None = None,
) -> RunResult:
    """Serve `workload` on one replica and return what happened.

    `on_progress` is told now and then how many requests are over. A KeyboardInterrupt in the middle ends the run: the
    result holds what was done and says that it is not complete. Requests longer than the context limit are rejected,
    as vLLM's API server does (prompt + requested output > max_model_len: 400).
    """
    content_span = span_of(workload.prefixes, limits)
    limits = limits._replace(content_span=content_span)
    fits = workload.prompt_tokens.astype(np.int64) + workload.output_tokens <= limits.max_model_len
    rows = np.flatnonzero(fits)
    requests, content_ids = load(workload, rows, limits, predictor, max_tokens)
    named = minds_blocks(discipline, content_ids)
    replica = new_replica(limits, requests, content_ids, records(0, ABORT), num_blocks, named=named)
    advance = engine(discipline).advance
    complete = True
    try:
        while advance(replica, tables, NEVER, ITERATIONS_A_CALL) != IDLE:
            if on_progress is not None:
                on_progress(int(replica.at[NEXT_ARRIVAL] - replica.at[UNFINISHED]))
    except KeyboardInterrupt:
        complete = False
    return result_of(replica, workload, rows, complete)


def span_of(prefixes: Prefixes | None, limits: Limits) -> int:
    """KV blocks that one of the workload's content ids covers; 1 where the two do not divide (`reblocked`)."""
    if prefixes is None or not limits.prefix_caching or prefixes.block_tokens % limits.block_size:
        return 1
    return prefixes.block_tokens // limits.block_size


def load(
    workload: Workload,
    rows: I64,
    limits: Limits,
    predictor: PredictorSpec = NOTHING_KNOWN,
    max_tokens: int | None = None,
) -> tuple[Records, I64]:
    """The workload's requests `rows` as REQUEST records, and the ids of their content.

    Each asks for `max_tokens` as far as the context allows, or for what it gets where that is more; None: exactly for
    what it gets, so that reservations and foreseen ends are as good as they can be.
    """
    output = workload.output_tokens[rows].astype(np.int64)
    requests = records(len(rows), REQUEST)
    requests["arrival_ns"] = workload.arrival_us[rows] * 1000
    requests["prompt"] = workload.prompt_tokens[rows]
    requests["output"] = output
    requests["max_tokens"] = output
    if max_tokens is not None:
        room = limits.max_model_len - workload.prompt_tokens[rows].astype(np.int64)
        requests["max_tokens"] = np.maximum(output, np.minimum(max_tokens, room))
    requests["predicted"] = predictor.believed(output)
    requests["deadline_ns"] = deadlines_ns(workload, rows)
    requests["tenant"] = tenant_numbers(workload, rows)
    if workload.priority is not None:
        requests["priority"] = workload.priority[rows]
    prefixes = workload.prefixes
    if prefixes is None or not limits.prefix_caching:
        return requests, np.zeros(0, dtype=np.int64)
    if prefixes.block_tokens % limits.block_size:
        prefixes = reblocked(prefixes, limits.block_size)
    named = (prefixes.start[1:] - prefixes.start[:-1])[rows] * limits.content_span
    requests["first_content"] = prefixes.start[:-1][rows]
    # an id of a partly filled block says nothing about what follows the prompt in it; ids of chats name answers too
    covered = workload.prompt_tokens[rows] + (output if prefixes.partial_block == "floor" else 0)
    requests["content_blocks"] = np.minimum(named, covered // limits.block_size)
    return requests, prefixes.ids


def result_of(replica: Replica, workload: Workload, rows: I64, complete: bool) -> RunResult:
    """What a replica has done, in the workload's order."""
    at = replica.at
    log = replica.record
    edges = bin_edges()
    return RunResult(
        requests=_request_columns(replica, workload, rows),
        series=_series(replica),
        events=Events(
            time_ns=log.events.time_ns[: at[EVENTS]],
            request=rows[log.events.request[: at[EVENTS]]],
            kind=log.events.kind[: at[EVENTS]].astype(np.int8),
            complete=bool(at[EVENTS_LOST] == 0),
        ),
        itl=Histogram(edges, log.itl, int(at[ITL_SUM]), int(at[ITL_MAX])),
        batch_requests=_counts(log.batch_requests),
        batch_tokens=_counts(log.batch_tokens),
        steps=int(at[STEPS]),
        busy_ns=int(at[BUSY]),
        end_ns=int(at[DEVICE_FREE]),
        computed_tokens=int(at[COMPUTED_TOKENS]),
        recomputed_tokens=int(at[REDONE_TOKENS]),
        blocks=len(replica.pool.blocks) - 1,
        blocks_free_at_end=int(replica.pool.counts[FREE_BLOCKS]),
        complete=complete and bool(at[UNFINISHED] == 0),
    )


def _counts(counts: I64) -> Histogram:
    """A histogram whose bins are single values."""
    values = np.arange(len(counts), dtype=np.int64)
    used = np.flatnonzero(counts)
    return Histogram(values, counts, int((values * counts).sum()), int(used[-1]) if len(used) else 0)


def _series(replica: Replica) -> Series:
    """The time series up to the end of the last step."""
    bucket_ns = int(replica.at[BUCKET])
    used = int(replica.at[DEVICE_FREE]) // bucket_ns + 1
    column: F64 = replica.record.series[:used].T
    return Series(
        bucket_ns=bucket_ns,
        running=column[RUNNING_INTEGRAL] / bucket_ns,
        waiting=column[WAITING_INTEGRAL] / bucket_ns,
        kv_used=column[BLOCKS_INTEGRAL] / bucket_ns / max(1, len(replica.pool.blocks) - 1),
        tokens_per_s=column[TOKENS] / (bucket_ns / 1e9),
        preemptions=column[PREEMPTIONS].astype(np.int64),
        busy=column[BUSY_TIME] / bucket_ns,
    )


def _request_columns(replica: Replica, workload: Workload, rows: I64) -> RequestColumns:
    """Per-request outcomes; rows that were not served are rejected."""
    n = len(workload)
    progress, ledger = replica.progress, replica.ledger

    def wide(values: I64) -> I64:
        column = np.zeros(n, dtype=np.int64)
        column[rows] = values
        return column

    def narrow(values: I32) -> I32:
        column = np.zeros(n, dtype=np.int32)
        column[rows] = values
        return column

    finished = progress.status == FINISHED
    status = np.full(n, Status.REJECTED, dtype=np.int8)
    status[rows] = np.where(finished, Status.FINISHED, Status.UNFINISHED)
    arrived = progress.known > 0
    generated = np.where(arrived, progress.known - replica.requests.prompt, 0)
    started = ledger.scheduled > 0
    queue = np.where(finished | started, ledger.scheduled - replica.requests.arrival_ns, 0)
    return RequestColumns(
        request_id=workload.request_id,
        status=status,
        arrival_ns=workload.arrival_us * 1000,
        scheduled_ns=wide(ledger.scheduled),
        first_token_ns=wide(ledger.first_token),
        finish_ns=wide(ledger.finish),
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        generated_tokens=narrow(generated),
        hit_tokens=narrow(progress.hit),
        preemptions=narrow(progress.preemptions),
        front_end_ns=np.zeros(n, dtype=np.int64),
        queue_ns=wide(queue),
        prefill_ns=wide(ledger.prefill),
        decode_ns=wide(ledger.decode),
        stalled_ns=wide(ledger.stalled),
        preempted_ns=wide(ledger.preempted),
        host_ns=wide(ledger.host),
        transfer_ns=np.zeros(n, dtype=np.int64),
    )
