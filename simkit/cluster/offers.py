"""A workload as the replicas of a fleet take it, translated once for all that take it the same way."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.engine.deployment import ReplicaSpec
from simkit.engine.predictor import PredictorSpec
from simkit.engine.record import EVENT_CAPACITY
from simkit.engine.simulate import load, span_of
from simkit.engine.state import I64, Limits, Records
from simkit.models.steptables import StepTables
from simkit.workloads.workload import Workload

LEAST_EVENTS = 1024  # a replica's log of first events is at least so long


class Offered(NamedTuple):
    """A workload as a replica with certain limits takes it."""

    limits: Limits  # with the workload's content span
    requests: Records  # REQUEST [n]
    content_ids: I64
    fits: NDArray[np.bool_]  # [n] False: longer than the context, turned away at the door (vLLM's API server: 400)


class Offers:
    """Asked by deployment; of equal answers there is one."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._known: dict[tuple[Limits, PredictorSpec, int | None], Offered] = {}

    def to(self, spec: ReplicaSpec) -> Offered:
        """What a replica of a deployment is offered; InputError if its blocks do not divide the workload's."""
        settings = spec.deployment.engine
        key = (spec.limits, settings.predictor, settings.max_tokens)
        if key not in self._known:
            self._known[key] = offered(self.workload, spec, np.arange(len(self.workload), dtype=np.int64))
        return self._known[key]

    def all(self, specs: Sequence[ReplicaSpec]) -> list[Offered]:
        """`to` each of the deployments."""
        return [self.to(spec) for spec in specs]


def offered(workload: Workload, spec: ReplicaSpec, rows: I64) -> Offered:
    """The requests `rows` of a workload as a replica of a deployment takes them."""
    settings = spec.deployment.engine
    limits = spec.limits._replace(content_span=span_of(workload.prefixes, spec.limits))
    requests, content_ids = load(workload, rows, limits, settings.predictor, settings.max_tokens)
    longest = workload.prompt_tokens[rows].astype(np.int64) + workload.output_tokens[rows]
    return Offered(limits, requests, content_ids, longest <= spec.limits.max_model_len)


def event_capacity(replicas: int) -> int:
    """Length of the log of first events of each replica: together as long as that of one by itself."""
    return max(LEAST_EVENTS, EVENT_CAPACITY // replicas)


def least_step_ns(tables: StepTables) -> int:
    """The shortest time, ns, in which the device computes a token, in a batch of whatever size."""
    return int(tables.linear_ns[1:].min()) if len(tables.linear_ns) > 1 else 0
