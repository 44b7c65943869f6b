"""What no schedule can beat: bounds from the step tables alone, without a replay.

Each is proved from two facts about a step of x > 0 new tokens: it takes at least `linear_ns[x]`, which never falls as x
grows, and so at least x times the least `linear_ns[x] / x`. Attention, sampling, queues and host only add to that.
Found tokens of a prefix cache need no computing, so where prompts share content only the output counts.
"""

from dataclasses import dataclass

import numpy as np

from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.result import F64
from simkit.metrics.slo import Promise
from simkit.plan.observation import statistic_of
from simkit.workloads.workload import Workload

SAMPLE_LUCK = 0.9  # of a floor, that a percentile over some of the requests is taken to reach


@dataclass(frozen=True)
class Bounds:
    """Of one replica; s and requests/s."""

    compute_per_s: float  # requests a second that its steps can compute
    kv_per_s: float  # requests a second that its KV blocks can hold for as long as they must stay
    missed: tuple[str, ...]  # targets that fail even for a request alone on an idle replica
    floors_s: dict[str, float]  # target's key -> the least that its statistic can be

    @property
    def rate_per_s(self) -> float:
        """The requests a second that no load can exceed for long."""
        return min(self.compute_per_s, self.kv_per_s)

    @property
    def limited_by(self) -> str:
        """Which bound is the lower."""
        return "compute" if self.compute_per_s <= self.kv_per_s else "KV"


def bounds(spec: ReplicaSpec, workload: Workload, promise: Promise) -> Bounds:
    """The bounds of a replica on a workload's requests (those that fit its context)."""
    limits = spec.limits
    prompt, output = workload.prompt_tokens.astype(np.float64), workload.output_tokens.astype(np.float64)
    fits = prompt + output <= limits.max_model_len
    if not fits.any():
        return Bounds(0.0, 0.0, ("rejected",), {})
    prompt, output = prompt[fits], output[fits]
    cached = workload.prefixes is not None and limits.prefix_caching
    computed = np.ones_like(prompt) if cached else prompt
    linear = spec.tables.linear_ns[1 : limits.max_num_batched_tokens + 1]
    token_ns = float((linear / np.arange(1, len(linear) + 1)).min())
    # with drafts to check a step yields up to so many tokens of a request
    yielded = 1 + limits.speculative_tokens
    step_ns = float(linear[0]) / yielded
    compute = 1e9 / float(np.mean((computed + output - 1) * token_ns))
    # the prompt's blocks are held while the output's other tokens come, one a step
    held = np.ceil(prompt / limits.block_size) * (output - 1) * step_ns
    kv = float("inf") if cached or held.mean() == 0 else 1e9 * (spec.num_blocks - 1) / float(held.mean())
    floors = _floors(computed, output, token_ns, step_ns, spec)
    # a share of the workload is a sample of it: leave room for its percentiles to be luckier
    floors = {metric: SAMPLE_LUCK * values for metric, values in floors.items()}
    known = {t.key: statistic_of(floors[t.metric], t.statistic) for t in promise.targets if t.metric in floors}
    missed = tuple(t.key for t in promise.targets if t.key in known and known[t.key] > t.limit_s)
    if promise.attainment is not None:
        good = np.ones(len(prompt), dtype=np.bool_)
        for limit in promise.limits:
            if limit.metric in floors:
                good &= ~(floors[limit.metric] > limit.limit_s)
        missed += ("attainment",) if float(good.mean()) < promise.attainment else ()
    return Bounds(compute, kv, missed, known)


def _floors(computed: F64, output: F64, token_ns: float, step_ns: float, spec: ReplicaSpec) -> dict[str, F64]:
    """[n] the least each request's latencies can be, s; TPOT is NaN for an answer of one token."""
    steps = np.ceil(computed / spec.limits.max_num_batched_tokens)
    ttft = np.maximum(computed * token_ns, steps * step_ns) / 1e9
    tpot = np.where(output > 1, step_ns / 1e9, np.nan)
    e2e = ttft + (output - 1) * step_ns / 1e9
    return {"ttft": ttft, "tpot": tpot, "e2e": e2e, "ntpot": e2e / output}
