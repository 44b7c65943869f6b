"""Closed forms of queueing theory that the engine must reproduce; a user can run them on their own machine.

With one running request, a budget above any prompt and a step time proportional to tokens, a replica is a single server
whose service time is its prompt's length.
"""

import numpy as np

from simkit.engine.selftest import Finding
from simkit.engine.simulate import simulate
from simkit.engine.state import Limits
from simkit.metrics.result import RunResult
from simkit.models.steptables import constant_tables
from simkit.workloads.workload import Workload

MEAN_TOKENS = 10_000  # a service time of 1 s at 100 us a token: rounding to whole tokens is a 1e-4 of it
LONGEST = 400_000  # 40 mean service times: exp(-40) of exponential ones are longer
TOKEN_NS = 100_000.0
REPLICATIONS = 20
REQUESTS = 10_000
LOAD = 0.8
STUDENT_T_995_19 = 2.861  # 99.5 % quantile of Student's t with 19 degrees of freedom, any table

_LIMITS = Limits(
    max_num_batched_tokens=LONGEST,
    max_running=1,
    max_model_len=LONGEST + 2,
    block_size=1024,
)
_BLOCKS = 2 + (LONGEST + 2) // _LIMITS.block_size


def check_oracles() -> list[Finding]:
    """Mean wait of M/M/1 and M/D/1, Little's law, and conservation of blocks, each against theory."""
    exponential = [serve(LOAD, "exponential", seed) for seed in range(REPLICATIONS)]
    constant = [serve(LOAD, "constant", seed) for seed in range(REPLICATIONS)]
    return [
        _mean_wait("M/M/1 mean wait", "rho / (1 - rho) service times", exponential, LOAD / (1 - LOAD)),
        _mean_wait("M/D/1 mean wait", "half of M/M/1's (Pollaczek-Khinchine)", constant, LOAD / (1 - LOAD) / 2),
        _little(exponential[0]),
        _blocks_conserved([*exponential, *constant]),
    ]


def serve(load: float, service: str, seed: int, requests: int = REQUESTS) -> RunResult:
    """One queue at `load`; service times of mean 1 s, exponential or constant."""
    arrivals, lengths = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    arrival_us = np.cumsum(arrivals.exponential(1e6 / load, requests)).astype(np.int64)
    tokens = np.full(requests, MEAN_TOKENS)
    if service == "exponential":
        tokens = np.clip(np.rint(lengths.exponential(MEAN_TOKENS, requests)), 1, LONGEST).astype(np.int64)
    ones = np.ones(requests, dtype=np.int32)
    tables = constant_tables(LONGEST, 1, token_ns=TOKEN_NS)
    return simulate(Workload("queue", arrival_us, tokens.astype(np.int32), ones), _LIMITS, tables, _BLOCKS)


def _mean_wait(name: str, statement: str, runs: list[RunResult], expected: float) -> Finding:
    """Whether theory is inside the 99 % confidence interval of the replications' means, after the first tenth."""
    waits = [float(run.requests.queue_ns[REQUESTS // 10 :].mean()) / 1e9 for run in runs]
    half_width = STUDENT_T_995_19 * float(np.std(waits, ddof=1)) / REPLICATIONS**0.5
    mean = float(np.mean(waits))
    detail = f"{mean:.3f} +- {half_width:.3f}, theory {expected:.3f} (load {LOAD}, {REPLICATIONS} replications)"
    return Finding(name, statement, abs(mean - expected) <= half_width, detail)


def _little(run: RunResult) -> Finding:
    """The time-average number in the system is the arrival rate times the mean time in it.

    The series sees an arrival when the step under way has ended: with probability rho there is one, of which a mean
    service time is left (renewal theory, exponential service), which the integral lacks.
    """
    integral_s = float((run.series.running + run.series.waiting).sum()) * run.series.bucket_ns / 1e9
    total_s = float((run.requests.finish_ns - run.requests.arrival_ns).sum()) / 1e9
    missing = (total_s - integral_s) / REQUESTS
    detail = f"sum of times less integral: {missing:.3f} s a request, theory {LOAD:.3f}"
    return Finding("Little's law", "L = lambda W", abs(missing - LOAD) <= 0.05 * LOAD, detail)


def _blocks_conserved(runs: list[RunResult]) -> Finding:
    lost = sum(run.blocks - run.blocks_free_at_end for run in runs)
    detail = f"{lost} blocks missing after {sum(run.requests.finish_ns.size for run in runs)} requests"
    return Finding("blocks conserved", "blocks free at the end = blocks at the start", lost == 0, detail)
