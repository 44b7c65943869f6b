"""What a router is: the choice of a replica for a request."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from simkit.cluster.loops.routed import BETTER_OF_TWO, LEAST, LEAST_REPORTED, REQUESTS, TOKENS
from simkit.engine.state import I64
from simkit.workloads.workload import Workload

__all__ = ["BETTER_OF_TWO", "LEAST", "LEAST_REPORTED", "REQUESTS", "TOKENS", "BlindRouter", "Router", "Rule", "View"]


class View(Protocol):
    """What a router can know when a request is to be sent: of the replicas that can take it, and of the request."""

    @property
    def now_ns(self) -> int:
        """The time on the fleet's clock."""

    def __len__(self) -> int:
        """Replicas that can be chosen; they are numbered from 0."""

    def number(self, replica: int) -> int:
        """The replica's number in the whole fleet, its own for life; replicas may come and go."""

    def outstanding(self, replica: int) -> int:
        """Requests sent to a replica and not answered yet."""

    def outstanding_tokens(self, replica: int) -> int:
        """The prompts of these and the answers expected of them."""

    def running_and_waiting(self, replica: int) -> tuple[int, int]:
        """Requests in the replica's batch and in its queue."""

    def kv_used(self, replica: int) -> float:
        """Share, 0 to 1, of the replica's KV blocks that requests hold."""

    def kv_tokens(self, replica: int) -> int:
        """Tokens that the replica's KV cache holds."""

    def pool(self, replica: int) -> str:
        """The name of the pool that the replica belongs to."""

    def cached_tokens(self, replica: int, request: int) -> int:
        """How many of a request's leading prompt tokens are in the replica's prefix cache."""

    def prompt_tokens(self, request: int) -> int:
        """Length of a request's prompt."""

    def expected_tokens(self, request: int) -> int:
        """Its prompt and the answer expected of it."""

    def session(self, request: int) -> str:
        """The session that a request belongs to; empty if the workload names none."""

    def content(self, request: int) -> I64:
        """Ids of the request's leading blocks; equal ids are equal content. Empty if the workload names none."""

    def content_tokens(self) -> int:
        """Tokens that an id covers."""


@runtime_checkable
class Router(Protocol):
    """A router that may look at the load."""

    def choose(self, request: int, fleet: View) -> int:
        """The replica for a request, given by its row in the workload; called in order of time, again for a retry."""


@runtime_checkable
class BlindRouter(Protocol):
    """A router that does not look at the load, so that all its choices are known beforehand."""

    def shares(self, workload: Workload, replicas: int) -> I64:
        """[n] the replica of each request, 0 <= replica < replicas."""


@dataclass(frozen=True)
class Rule:
    """How a router chooses, if it is one of those that the compiled loop knows (simkit.cluster.loops.routed)."""

    kind: int  # LEAST, BETTER_OF_TWO, LEAST_REPORTED
    load: int = REQUESTS  # or TOKENS
    draws: int = 1  # random numbers that it draws for each request
    age_ns: int = 1  # of reports
