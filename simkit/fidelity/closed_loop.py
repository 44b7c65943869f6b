"""A client that keeps a number of requests in flight: as one finishes, it sends the next.

Replayed without a closed loop: all requests are there from the start and the engine runs at most so many at once. A
request is admitted when one ahead of it ends, which is the moment at which the client would have sent it; so its TTFT
runs from that end. The engine takes requests in the same order either way.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.engine.deployment import ReplicaSpec
from simkit.engine.simulate import simulate
from simkit.errors import InputError
from simkit.metrics.result import Status
from simkit.workloads.streams import stream
from simkit.workloads.workload import Workload

F64 = NDArray[np.float64]


class ClosedLoop(NamedTuple):
    """What a closed-loop client is told."""

    concurrency: int  # requests in flight
    requests: int  # in all
    input_tokens: int  # the longest prompt
    output_tokens: int  # the longest answer
    shortest: float = 1.0  # lengths are drawn evenly from this share of the longest to the longest


class LoopFigures(NamedTuple):
    """Means over requests, s."""

    ttft_s: float
    tpot_s: float


def loop_workload(loop: ClosedLoop, seed: int = 0) -> Workload:
    """The requests, all there at time 0, in the order in which they are sent."""
    rng = stream(seed)

    def lengths(longest: int) -> NDArray[np.int32]:
        shortest = max(1, int(longest * loop.shortest))
        return rng.integers(shortest, longest + 1, loop.requests).astype(np.int32)

    return Workload(
        name=f"closed loop of {loop.concurrency}",
        arrival_us=np.zeros(loop.requests, dtype=np.int64),
        prompt_tokens=lengths(loop.input_tokens),
        output_tokens=lengths(loop.output_tokens),
        source="generated",
    )


def replay_loop(spec: ReplicaSpec, loop: ClosedLoop, seed: int = 0) -> LoopFigures:
    """Mean TTFT and TPOT of the loop's requests on a replica, as the client sees them.

    Raises:
        InputError: the engine runs fewer requests at once than the client keeps in flight, or turns some away.
    """
    if loop.concurrency > spec.limits.max_running:
        raise InputError(
            f"concurrency {loop.concurrency}: the engine runs at most {spec.limits.max_running} requests at once; "
            "raise max_num_seqs"
        )
    limits = spec.limits._replace(max_running=loop.concurrency)
    discipline = spec.deployment.engine.discipline
    result = simulate(loop_workload(loop, seed), limits, spec.tables, spec.num_blocks, None, discipline)
    requests = result.requests
    if (requests.status != Status.FINISHED).any():
        raise InputError(f"a request of the loop does not fit max_model_len={limits.max_model_len}; raise it")
    finish = np.sort(requests.finish_ns)
    sent = np.concatenate([np.zeros(loop.concurrency, dtype=np.int64), finish])[: loop.requests]
    ttft_s = (requests.first_token_ns - sent + spec.front_end.ns(requests.prompt_tokens)) / 1e9
    tokens = requests.generated_tokens.astype(np.float64)
    spans = (requests.finish_ns - requests.first_token_ns) / 1e9
    many = tokens > 1
    return LoopFigures(float(np.mean(ttft_s)), float(np.mean(spans[many] / (tokens[many] - 1.0))))
