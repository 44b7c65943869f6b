"""How often do 95 % intervals hold the truth? Prints the shares of 1,000 trials, as tests/plan/test_coverage.py checks.

Two queues whose waits are known in closed form: M/M/1 by Lindley's recursion, and the engine itself as M/D/1 (one
request at a time, a second each). Each trial makes one interval of the mean and one of the 99th percentile from 10
independent replications of 12,000 (engine: 4,000) requests, the first 500 (200) left out.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.metrics.intervals import mean_interval, quantile_interval
from simkit.models.steptables import constant_tables
from simkit.plan.sweep import replay
from simkit.workloads.workload import Workload

TRIALS, REPLICATIONS, LOAD = 1000, 10, 0.5
Wait = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Waits = list[Wait]


def main() -> None:
    """Print the shares."""
    rng = np.random.default_rng(1)
    report("M/M/1", (mm1(rng) for _ in range(TRIALS)), LOAD / (1 - LOAD), math.log(LOAD / 0.01) / (1 - LOAD))
    report("engine as M/D/1", (engine(trial) for trial in range(TRIALS)), LOAD / 2 / (1 - LOAD), md1_p99())


def mm1(rng: np.random.Generator) -> Waits:
    """The waits of each replication, s."""
    steps = rng.exponential(1.0, (REPLICATIONS, 12_000)) - rng.exponential(1 / LOAD, (REPLICATIONS, 12_000))
    walk = np.cumsum(steps, axis=1)
    return list((walk - np.minimum(np.minimum.accumulate(walk, axis=1), 0.0))[:, 500:])


def engine(trial: int) -> Waits:
    """The same of a replica that serves one request at a time in a second."""
    return [one_replay(REPLICATIONS * trial + part) for part in range(REPLICATIONS)]


def one_replay(seed: int) -> Wait:
    """4,000 Poisson arrivals."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1e6 / LOAD, 4000)).astype(np.int64)
    work = np.full(4000, 1000, dtype=np.int32)
    result = replay(SERVER, Workload("M/D/1", arrivals, work, np.ones(4000, dtype=np.int32)))
    return result.requests.queue_ns[200:] / 1e9


def server() -> ReplicaSpec:
    """A millisecond a token of the prompt, one token of answer."""
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    limits = spec.limits._replace(max_num_batched_tokens=1000, max_running=1, max_model_len=1002, pipeline_depth=1)
    return replace(spec, limits=limits, tables=constant_tables(1000, 1, token_ns=1e6), num_blocks=100)


def md1_p99() -> float:
    """Of the wait: Erlang's sum (1909) of P(wait <= t), solved by bisection."""
    low, high = 0.0, 30.0
    for _ in range(60):
        t = (low + high) / 2
        terms = ((LOAD * (k - t)) ** k / math.factorial(k) * math.exp(-LOAD * (k - t)) for k in range(int(t) + 1))
        low, high = (t, high) if (1 - LOAD) * sum(terms) < 0.99 else (low, t)
    return low


def report(name: str, trials: Iterable[Waits], mean: float, p99: float) -> None:
    """One line."""
    held_mean = held_p99 = 0
    for waits in trials:
        held_mean += mean_interval(waits).holds(mean)
        held_p99 += quantile_interval(waits, 0.99).holds(p99)
    print(f"{name}: mean {held_mean / TRIALS:.3f}, p99 {held_p99 / TRIALS:.3f} of {TRIALS} intervals hold the truth")


SERVER = server()

if __name__ == "__main__":
    main()
