"""What no schedule can beat: bounds from the step tables alone, without a replay.

Each is proved from two facts about a step of x > 0 new tokens: it takes at least `linear_ns[x]`, which never falls as x
grows, and so at least x times the least `linear_ns[x] / x` (of the slowest stage of a pipeline). Attention, sampling,
queues and host only add to that.
Found tokens of a prefix cache need no computing, so where prompts share content only the output counts. Of a group,
the prefill replicas must compute the prompts, the links carry them and the decode replicas put out the answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simkit.engine.deployment import ReplicaSpec
from simkit.metrics.result import F64
from simkit.metrics.slo import Promise
from simkit.plan.observation import REJECTED, statistic_of
from simkit.plan.unit import Group, Unit
from simkit.workloads.workload import Workload

SAMPLE_LUCK = 0.9  # of a floor, that a percentile over some of the requests is taken to reach


@dataclass(frozen=True)
class Bounds:
    """Of one unit; s and requests/s."""

    # requests a second that its steps can compute ("compute"; of a group "prefill compute" and "decode compute"), that
    # its KV blocks can hold for as long as they must stay ("KV"), that a group's links can carry ("link")
    limits_per_s: Mapping[str, float]
    missed: tuple[str, ...]  # what fails even for a request alone on an idle replica
    floors_s: dict[str, float]  # target's key -> the least that its statistic can be

    @property
    def rate_per_s(self) -> float:
        """The requests a second that no load can exceed for long."""
        return min(self.limits_per_s.values(), default=0.0)

    @property
    def limited_by(self) -> str:
        """Which bound is the lowest."""
        return min(self.limits_per_s, key=lambda name: self.limits_per_s[name], default="nothing")


class Work(NamedTuple):
    """What is known of the requests that fit, before any of them is served; f64[n], tokens."""

    prompt: F64
    output: F64
    computed: F64  # of the prompt at the least: 1 where prompts share content and the cache may have the rest

    @property
    def cached(self) -> bool:
        """Whether a prompt's KV may be there already."""
        return self.computed is not self.prompt


def bounds(unit: Unit, workload: Workload, promise: Promise) -> Bounds:
    """The bounds of a replica, or of a group, on a workload's requests (those that fit its context)."""
    limits = unit.limits
    prompt, output = workload.prompt_tokens.astype(np.float64), workload.output_tokens.astype(np.float64)
    fits = prompt + output <= limits.max_model_len
    if not fits.any():
        return Bounds({}, (REJECTED,), {})
    prompt, output = prompt[fits], output[fits]
    cached = workload.prefixes is not None and limits.prefix_caching
    work = Work(prompt, output, np.ones_like(prompt) if cached else prompt)
    rates, floors = _of_group(unit, work) if isinstance(unit, Group) else _of_replica(unit, work)
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
    missed = missed if fits.all() else (REJECTED, *missed)
    return Bounds(rates, missed, known)


def _of_replica(spec: ReplicaSpec, work: Work) -> tuple[dict[str, float], dict[str, F64]]:
    """(requests/s by what limits them, floors as `_floors`)."""
    token_ns, step_ns = _pace(spec)
    compute = _per_second((work.computed + work.output - 1) * token_ns)
    rates = {"compute": compute, "KV": _kv_per_s(spec, work, step_ns)}
    return rates, _floors(_prefill_ns(work.computed, spec) / 1e9, work.output, step_ns)


def _of_group(group: Group, work: Work) -> tuple[dict[str, float], dict[str, F64]]:
    """As `_of_replica`: prompts with a full block to hand over are computed by prefill replicas and go over a link.

    The decode replica computes a prompt's last token and puts out every token of the answer.
    """
    size = group.limits.block_size
    blocks = np.floor((work.prompt - 1) / size)
    apart = blocks > 0
    prefill_ns = np.where(apart, _prefill_ns(work.computed, group.prefill), 0.0)
    token_ns, step_ns = _pace(group.decode)
    prefill_token_ns, _ = _pace(group.prefill)
    # KV that the decode replica may have already need not come
    carried = np.zeros_like(blocks) if work.cached else blocks * size * group.token_bytes
    carried_ns = 1e9 * carried / group.link.bytes_per_s()
    rates = {
        "prefill compute": group.prefills * _per_second(np.where(apart, work.computed, 0.0) * prefill_token_ns),
        "decode compute": group.decodes * _per_second(work.output * token_ns),
        "KV": group.decodes * _kv_per_s(group.decode, work, step_ns),
        "link": group.prefills * _per_second(carried_ns),
    }
    local_ns = np.where(apart, step_ns, _prefill_ns(work.computed, group.decode))
    latency_ns = np.where(apart & (carried_ns > 0), group.link.latency_ns(), 0)
    return rates, _floors((prefill_ns + carried_ns + latency_ns + local_ns) / 1e9, work.output, step_ns)


def _pace(spec: ReplicaSpec) -> tuple[float, float]:
    """(the least time a token takes, the least time from one token of a request to its next), ns.

    The stages of a pipeline are at work on different steps at once: a token takes as long as its slowest stage, but a
    request's next token waits for all of them.
    """
    most = spec.limits.max_num_batched_tokens
    linear = spec.tables.linear_ns[1 : most + 1]
    stages = spec.tables.stage_linear_ns[:, 1 : most + 1] if len(spec.tables.stage_linear_ns) else linear[None, :]
    token_ns = float((stages / np.arange(1, len(linear) + 1)).min(axis=1).max())
    # with drafts to check a step yields up to so many tokens of a request
    return token_ns, float(linear[0]) / (1 + spec.limits.speculative_tokens)


def _prefill_ns(computed: F64, spec: ReplicaSpec) -> F64:
    """[n] the least time until the prompts' tokens are computed, ns."""
    token_ns, step_ns = _pace(spec)
    # a pipeline may have several chunks of a prompt in it
    piped = len(spec.tables.stage_linear_ns) > 0
    steps = np.ones_like(computed) if piped else np.ceil(computed / spec.limits.max_num_batched_tokens)
    return np.maximum(computed * token_ns, steps * step_ns)


def _per_second(needed_ns: F64) -> float:
    """Requests a second of which each needs so long of something by itself."""
    mean = float(needed_ns.mean())
    return 1e9 / mean if mean > 0 else float("inf")


def _kv_per_s(spec: ReplicaSpec, work: Work, step_ns: float) -> float:
    """The prompt's blocks are held while the output's other tokens come, one a step."""
    if work.cached:
        return float("inf")
    blocks = spec.memory.groups.least_blocks(work.prompt, spec.limits.block_size)
    held = blocks * (work.output - 1) * step_ns
    return (spec.num_blocks - 1) * _per_second(held)


def _floors(ttft: F64, output: F64, step_ns: float) -> dict[str, F64]:
    """[n] the least each request's latencies can be, s, with `ttft` [n]; TPOT is NaN for an answer of one token."""
    tpot = np.where(output > 1, step_ns / 1e9, np.nan)
    e2e = ttft + (output - 1) * step_ns / 1e9
    return {"ttft": ttft, "tpot": tpot, "e2e": e2e, "ntpot": e2e / output}
