"""What share of a run's device time stands on measured, interpolated, extrapolated and assumed step times."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simkit.metrics.result import RunResult
from simkit.models.steptables import grid_values
from simkit.models.table_shares import KNOWN, TableShares

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def step_time_shares(runs: Sequence[RunResult], known: TableShares, kv_tokens: int) -> dict[str, float]:
    """Shares by the words of `KNOWN`, summing to 1; all 0 for runs without steps.

    Steps are not kept one by one, so attention is put together from the run's own counts: decodes at each batch size
    over the run's mean context, every prompt in chunks of the largest step. Linear layers and sampling are exact.

    Args:
        runs: of one replica each; contexts cannot be told from several merged into one.
        known: of the tables that they ran on.
        kv_tokens: tokens the KV cache of one holds.
    """
    total = np.sum([_known_ns(run, known, kv_tokens) for run in runs], axis=0)
    whole = total.sum()
    return {word: float(part / whole) if whole > 0 else 0.0 for word, part in zip(KNOWN, total, strict=True)}


def _known_ns(result: RunResult, known: TableShares, kv_tokens: int) -> F64:
    """[tags] of one replica's steps."""
    total = _by_steps(known.linear_ns, result.batch_tokens.count)
    total += _by_steps(known.sample_ns, result.batch_requests.count)
    total += _decodes(result, known.decode_ns, known.decode_window_ns, kv_tokens)
    total += _prefills(result, known)
    return total


def _by_steps(table: F64, count: I64) -> F64:
    """[tags] of a table by size and the steps of each size."""
    sizes = min(table.shape[1], len(count))
    total: F64 = table[:, :sizes] @ count[:sizes].astype(np.float64)
    return total


def _decodes(result: RunResult, full: F64, windowed: F64, kv_tokens: int) -> F64:
    running = float(result.series.running.sum())
    if running == 0.0:
        return np.zeros(len(KNOWN))
    context = max(1.0, float(result.series.kv_used.sum()) * kv_tokens / running)
    batch = np.flatnonzero(result.batch_requests.count)
    batch = batch[batch > 0]
    steps = result.batch_requests.count[batch].astype(np.float64)
    parts = np.zeros(len(KNOWN))
    for table in (full, windowed):
        if table.size:
            parts += _looked_up(table, batch, (batch * context).astype(np.int64)) @ steps
    return parts


def _prefills(result: RunResult, known: TableShares) -> F64:
    budget = max(1, known.linear_ns.shape[1] - 1)
    served = result.requests.generated_tokens > 0
    hit = result.requests.hit_tokens[served].astype(np.int64)
    left = result.requests.prompt_tokens[served].astype(np.int64) - hit
    past, parts = hit.copy(), np.zeros(len(KNOWN))
    while (left > 0).any():
        chunk = np.minimum(left, budget)
        some = chunk > 0
        parts += _looked_up(known.prefill_ns, chunk[some], past[some]).sum(axis=1)
        past, left = past + chunk, left - chunk
    return parts


def _looked_up(table: F64, x: I64, y: I64) -> F64:
    """[tags, n] at the nearest nodes of the geometric axes."""
    i = np.minimum(np.searchsorted(grid_values(int(x.max(initial=1))), x), table.shape[1] - 1)
    j = np.minimum(np.searchsorted(grid_values(int(y.max(initial=1))), y), table.shape[2] - 1)
    found: F64 = table[:, i, j]
    return found
