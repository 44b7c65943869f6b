"""What a plan multiplies, one replica or a group of prefill and decode replicas, and how one of them serves."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from simkit.cluster.disaggregated import serve_disaggregated
from simkit.cluster.handover import Disaggregation
from simkit.cluster.moving import Moving, check_moving, token_bytes
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.topology import LinkSpec
from simkit.engine.deployment import Deployment, ReplicaSpec, with_whole_contexts
from simkit.engine.state import Limits
from simkit.metrics.result import RequestColumns, RunResult
from simkit.models.steptables import scaled
from simkit.plan.space import Kind
from simkit.plan.sweep import replay
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class Group:
    """Prefill and decode replicas behind one gateway, worked out; the decode replica's word is the group's."""

    prefill: ReplicaSpec
    prefills: int
    decode: ReplicaSpec
    decodes: int
    link: LinkSpec

    @property
    def deployment(self) -> Deployment:
        """Of its decode replicas."""
        return self.decode.deployment

    @property
    def limits(self) -> Limits:
        """Of its decode replicas."""
        return self.decode.limits

    @property
    def provenance(self) -> str:
        """Of the step times."""
        return self.decode.provenance

    @property
    def provenance_note(self) -> str:
        """What they rest on."""
        return self.decode.provenance_note

    @property
    def token_bytes(self) -> int:
        """KV of one token, on all GPUs of a replica, as it goes over the link."""
        return token_bytes(self.decode)

    @property
    def decode_gpu_share(self) -> float:
        """The share of the group's GPUs that decode."""
        decode = self.decodes * self.decode.deployment.layout.gpus
        return decode / (decode + self.prefills * self.prefill.deployment.layout.gpus)


Unit = ReplicaSpec | Group


class Served(NamedTuple):
    """What one unit did with its share of the traffic."""

    requests: RequestColumns  # as its clients saw them
    runs: tuple[RunResult, ...]  # one a replica; of a group the prefill replicas first


def work_out(kind: Kind, resolve: Callable[[Deployment], ReplicaSpec]) -> Unit:
    """The unit of a kind; InputError where it cannot be."""
    decode = resolve(kind.deployment)
    if kind.apart is None:
        return decode
    apart = kind.apart
    apart.link.bytes_per_s()
    decode = with_whole_contexts(decode, resolve)
    prefill = decode
    if apart.prefill != kind.deployment:
        prefill = with_whole_contexts(resolve(apart.prefill), resolve)
    moving = Moving(apart=Disaggregation(link=apart.link))
    check_moving(moving, [Member(prefill, PREFILL), Member(decode, DECODE)])
    return Group(prefill, apart.prefills, decode, apart.decodes, apart.link)


def serves_alike(one: Unit, other: Unit) -> bool:
    """Whether two units of as many GPUs serve any workload alike: room, limits and step times are the same."""
    if isinstance(one, Group) and isinstance(other, Group):
        counts = (one.prefills, one.decodes, one.link) == (other.prefills, other.decodes, other.link)
        return counts and serves_alike(one.prefill, other.prefill) and serves_alike(one.decode, other.decode)
    if isinstance(one, Group) or isinstance(other, Group):
        return False
    if (one.num_blocks, one.limits, one.front_end) != (other.num_blocks, other.limits, other.front_end):
        return False
    return all(np.array_equal(getattr(one.tables, name), getattr(other.tables, name)) for name in one.tables._fields)


def serve(unit: Unit, workload: Workload, step_time_factor: float = 1.0) -> Served:
    """One unit serves `workload`, every step `step_time_factor` times as long; KeyboardInterrupt is raised on."""
    if isinstance(unit, Group):
        fleet = serve_groups(unit, 1, workload, step_time_factor)
        return Served(fleet.requests, fleet.replicas)
    result = replay(unit, workload, step_time_factor=step_time_factor)
    return Served(result.requests, (result,))


def serve_groups(group: Group, groups: int, workload: Workload, step_time_factor: float = 1.0) -> FleetResult:
    """The replicas of so many groups behind one gateway serve `workload`; KeyboardInterrupt is raised on."""
    prefill, decode = (_slowed(spec, step_time_factor) for spec in (group.prefill, group.decode))
    members = [Member(prefill, PREFILL)] * (groups * group.prefills) + [Member(decode, DECODE)] * (
        groups * group.decodes
    )
    fleet = serve_disaggregated(workload, members, Disaggregation(link=group.link))
    if not fleet.complete:
        raise KeyboardInterrupt
    return fleet


def warm_up_group(unit: Unit, workload: Workload) -> None:
    """Compile what groups are replayed by, or fetch it from disk: by one request of `workload`."""
    if isinstance(unit, Group) and len(workload):
        serve_groups(unit, 1, selected(workload, np.zeros(1, dtype=np.int64)))


def _slowed(spec: ReplicaSpec, factor: float) -> ReplicaSpec:
    return spec if factor == 1.0 else replace(spec, tables=scaled(spec.tables, factor))
