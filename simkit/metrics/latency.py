"""Latencies of single requests, from a run's columns."""

from dataclasses import dataclass

import numpy as np

from simkit.metrics.result import F64, I64, RequestColumns, Status


@dataclass(frozen=True)
class Latencies:
    """One entry a finished request, in the workload's order; s.

    Definitions as vLLM's server and `vllm bench serve` have them (vllm/v1/metrics/stats.py,
    vllm/benchmarks/serve.py at 0.32); NTPOT as inference-perf 0.7 has it.
    """

    row: I64
    ttft_s: F64  # first token - arrival
    tpot_s: F64  # (last token - first token) / (tokens - 1); NaN for a request of one token
    ntpot_s: F64  # (last token - arrival) / tokens
    e2e_s: F64  # last token - arrival
    queue_s: F64  # start of the first step that computed some of it - arrival


def finished_latencies(requests: RequestColumns) -> Latencies:
    """The latencies of the finished requests, by the definitions printed in the report."""
    row = np.flatnonzero(requests.status == Status.FINISHED).astype(np.int64)
    first, finish, arrival = requests.first_token_ns[row], requests.finish_ns[row], requests.arrival_ns[row]
    tokens = requests.generated_tokens[row].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot_s = np.where(tokens > 1, (finish - first) / 1e9 / (tokens - 1.0), np.nan)
    e2e_s = (finish - arrival) / 1e9
    return Latencies(
        row=row,
        ttft_s=(first - arrival) / 1e9,
        tpot_s=tpot_s,
        ntpot_s=e2e_s / np.maximum(tokens, 1.0),
        e2e_s=e2e_s,
        queue_s=requests.queue_ns[row] / 1e9,
    )


def slowest(latencies: Latencies, by: F64, count: int) -> I64:
    """The rows of the `count` finished requests of largest `by`, slowest first; equals keep the workload's order."""
    order = np.argsort(-by, kind="stable")[:count]
    return latencies.row[order]


def request_label(requests: RequestColumns, row: int) -> str:
    """The request's own id, or its row number."""
    return requests.request_id[row] if requests.request_id is not None else str(row)
