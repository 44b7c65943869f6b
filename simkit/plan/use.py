"""How a fleet's device time divides into prefill, decode and idle, and what flows through it."""

from dataclasses import replace

import numpy as np

from simkit.engine.deployment import ReplicaSpec
from simkit.plan.cost import Use
from simkit.plan.observation import Observation
from simkit.plan.sweep import replay
from simkit.plan.traffic import replica_share
from simkit.plan.unit import Group, Served
from simkit.workloads.workload import Workload


def fleet_use(
    spec: ReplicaSpec, workload: Workload, replicas: int, rate_per_s: float, seen: Observation, gpus: int
) -> Use:
    """The use of `replicas` replicas of `gpus` GPUs each, one of which was `seen` at its share of the traffic.

    Prefill is the device time that the prompts alone take in full batches (a replay of the share in which every answer
    is one token and all are at hand); the rest of the busy time is decode.
    """
    prefill_ns = prefill_device_ns(spec, replica_share(workload, replicas, rate_per_s))
    busy_s = seen.busy_fraction * seen.duration_s
    part = min(1.0, prefill_ns / 1e9 / busy_s) if busy_s > 0 else 0.0
    shares = (seen.busy_fraction * part, seen.busy_fraction * (1 - part))
    return _use(replicas * gpus, shares, rate_per_s, seen)


def groups_use(group: Group, groups: int, rate_per_s: float, seen: Observation, served: Served, gpus: int) -> Use:
    """The use of `groups` groups of `gpus` GPUs each, one of which `served` its share: each role does its own."""
    end_ns = max(1, *(run.end_ns for run in served.runs))
    busy = [run.busy_ns / end_ns for run in served.runs]
    prefill, decode = sum(busy[: group.prefills]), sum(busy[group.prefills :])
    share = group.decode_gpu_share
    shares = ((1 - share) * prefill / group.prefills, share * decode / group.decodes)
    return _use(groups * gpus, shares, rate_per_s, seen)


def _use(gpus: int, shares: tuple[float, float], rate_per_s: float, seen: Observation) -> Use:
    """With (prefill's, decode's) shares of the GPUs' time."""
    served = max(0.0, 1 - seen.rejected / seen.requests) if seen.requests else 0.0
    done = max(1, seen.requests - seen.rejected)
    return Use(
        gpus=gpus,
        prefill_share=shares[0],
        decode_share=shares[1],
        requests_per_s=rate_per_s * served,
        input_tokens_per_s=rate_per_s * served * seen.prompt_tokens / done,
        output_tokens_per_s=rate_per_s * served * seen.output_tokens / done,
    )


def prefill_device_ns(spec: ReplicaSpec, workload: Workload) -> int:
    """The device time in which a replica computes all prompts, with found prefixes left out, and nothing else."""
    alone = replace(
        workload,
        arrival_us=np.zeros_like(workload.arrival_us),
        output_tokens=np.ones_like(workload.output_tokens),
    )
    return replay(spec, alone).busy_ns


def prefill_share(spec: ReplicaSpec, workload: Workload) -> float:
    """Prefill's share of the device time when all requests are at hand, so that decodes too run in full batches.

    At a low load decodes run in small batches and seem to take more; this share does not depend on the load.
    """
    together = replay(spec, replace(workload, arrival_us=np.zeros_like(workload.arrival_us)))
    return min(1.0, prefill_device_ns(spec, workload) / together.busy_ns) if together.busy_ns else 0.0
