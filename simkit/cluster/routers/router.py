"""What a router is: the choice of a replica for a request."""

from typing import Protocol, runtime_checkable

from simkit.engine.state import I64
from simkit.workloads.workload import Workload


class View(Protocol):
    """What a router can know of the fleet when a request arrives."""

    def __len__(self) -> int:
        """Replicas; they are numbered from 0."""

    def outstanding(self, replica: int) -> int:
        """Requests sent to a replica and not answered yet. Asking makes that replica catch up, so ask those needed."""


class Router(Protocol):
    """A router that may look at the load."""

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request, given by its row in the workload; called once each, in order of arrival."""


@runtime_checkable
class BlindRouter(Protocol):
    """A router that does not look at the load, so that all its choices are known beforehand."""

    def shares(self, workload: Workload, replicas: int) -> I64:
        """[n] the replica of each request, 0 <= replica < replicas."""
